"""The loss of continuous-time consistency models in TrigFlow (sCM), with its normalised tangent.

    h   = -cos(t)**2 (s_d F- - dx/dt) - r (cos(t) sin(t) x_t + s_d J)     the tangent, r from 0 to 1 as it warms up
    h  <- h / (|h| + c)                                                   |h|: the L2 norm of a sample, or its RMS
    l_b = v mean_i (F - F- - h)**2 + u,   v = exp(-u) / (s_d tan(t))
    dl/F = 2 v (F - F- - h) / n,          dl/du = 1 - v mean_i (F - F- - h)**2

Lu & Song 2024 (arXiv:2410.11081, algorithm 1 with the prior weight 1 / (s_d tan t)): their w_phi is -u, their mean over
the n elements is 1 / D. s_d is the data's standard deviation, J the derivative of F along (cos(t) sin(t) dx/dt / s_d,
cos(t) sin(t)), taken so because each factor alone overflows. SANA-Sprint takes the paper's |h| for the L2 norm of the
whole sample; others take the root mean square, whose normalised tangent is sqrt(n) times as long.

The weight is unbounded at t = 0. sin(t) is held at 1e-4 there, a noise of 5e-5 for s_d = 0.5 where samplers end at
0.002, and cos(t) at 0, which float32 misses at pi/2: there the weight is 0.

Three launches: the sums of h**2, (F - F-)**2 and their product, from which the loss follows; the derivative; and in the
backward pass its factor 2 v / n. So the loss, not its gradient, is off by the rounding of these sums, which shows only
where F - F- is h itself.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.guarded_loss import (
    GuardedLoss,
    guard,
    guarded_reference,
    keep_derivatives,
    new_outputs,
    refuse_forward_ad,
    scaled_gradients,
    wants_gradient,
)
from ddx.kernels.launch import Kernel, Launch, blocks
from ddx.kernels.per_sample import check_per_sample, check_samples, per_sample, row_total

_BLOCKS = ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 512, "num_warps": 2}, {"BLOCK": 2048, "num_warps": 8})
SUMS = Launch("scm_tangent_sums", default=_BLOCKS[0], candidates=_BLOCKS)
TERMS = Launch("scm_tangent", default=_BLOCKS[0], candidates=_BLOCKS)
PARTIALS = tl.constexpr(128)  # partial sums that a program reads at a time
SMALLEST_SIN = tl.constexpr(1e-4)
HALF_PI = tl.constexpr(1.5707963267948966)


def scm_loss_reference(
    output: Tensor,
    target_output: Tensor,
    teacher_tangent: Tensor,
    jvp: Tensor,
    x_t: Tensor,
    t: Tensor,
    log_weight: Tensor,
    *,
    warmup: float,
    sigma_data: float = 0.5,
    normalise: Literal["l2", "rms"] = "l2",
    c: float = 0.1,
) -> Tensor:
    """The loss in plain torch, without the guard; see :func:`scm_loss`. float64 inputs are computed in float64."""
    compute = torch.float64 if output.dtype == torch.float64 else torch.float32
    constants = (value.detach().to(compute).flatten(1) for value in (target_output, teacher_tangent, jvp, x_t))
    target_output, teacher_tangent, jvp, x_t = constants
    output, u = output.to(compute).flatten(1), log_weight.to(compute)
    cos, sin = (per_sample(value.to(compute), x_t) for value in (t.detach().cos(), t.detach().sin()))
    h = -cos * cos * (sigma_data * target_output - teacher_tangent) - warmup * (cos * sin * x_t + sigma_data * jvp)
    norm = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    h = h / ((norm if normalise == "l2" else norm * h.shape[1] ** -0.5) + c)
    error = (output - target_output - h).square().mean(dim=1)
    prior = (cos.clamp(min=0.0) / (sigma_data * sin.clamp(min=1e-4))).flatten()
    loss: Tensor = torch.exp(-u) * prior * error + u
    return loss


def scm_loss(
    output: Tensor,
    target_output: Tensor,
    teacher_tangent: Tensor,
    jvp: Tensor,
    x_t: Tensor,
    t: Tensor,
    log_weight: Tensor,
    *,
    warmup: float,
    sigma_data: float = 0.5,
    normalise: Literal["l2", "rms"] = "l2",
    c: float = 0.1,
) -> Tensor:
    """The loss of each sample, float32 `[B]` (float64 for float64 inputs), differentiable by output and log_weight.

    `[B, ...]` of equal shapes and any float dtypes: output, F at (x_t / s_d, t); target_output, F-, the same without a
    gradient; teacher_tangent, dx/dt, which is s_d F of the teacher (distillation) or cos(t) s_d z - sin(t) x0; jvp, J;
    x_t. `[B]`: t in [0, pi/2], float32 or float64; log_weight, u, a head on the time embedding. Python numbers: warmup,
    r in [0, 1]; sigma_data, s_d; c. normalise: which norm. A sample whose loss is not finite counts as 0 and has zero
    gradients, see :mod:`ddx.kernels.guarded_loss`; :func:`guarded_scm_loss` tells which.

    Raises ValueError for shapes and settings that do not fit, and NotImplementedError under forward-mode AD.
    """
    options: dict[str, Any] = {"warmup": warmup, "sigma_data": sigma_data, "normalise": normalise, "c": c}
    return guarded_scm_loss(output, target_output, teacher_tangent, jvp, x_t, t, log_weight, **options).loss


def guarded_scm_loss(
    output: Tensor,
    target_output: Tensor,
    teacher_tangent: Tensor,
    jvp: Tensor,
    x_t: Tensor,
    t: Tensor,
    log_weight: Tensor,
    *,
    warmup: float,
    sigma_data: float = 0.5,
    normalise: Literal["l2", "rms"] = "l2",
    c: float = 0.1,
) -> GuardedLoss:
    """:func:`scm_loss`, and which samples were dropped."""
    samples = {"output": output, "target_output": target_output, "teacher_tangent": teacher_tangent}
    check_samples(**samples, jvp=jvp, x_t=x_t)
    check_per_sample(len(output), t=t, log_weight=log_weight)
    if normalise not in ("l2", "rms"):
        raise ValueError(f"normalise must be 'l2' or 'rms', got {normalise!r}")
    if not (sigma_data > 0 and c > 0):
        raise ValueError(f"sigma_data and c must be positive, got {sigma_data} and {c}")
    refuse_forward_ad("scm_loss")
    constants = [value.detach() for value in (target_output, teacher_tangent, jvp, x_t, t)]
    if not dispatch.use_triton(output, *constants[:4]):
        options: dict[str, Any] = {"warmup": warmup, "sigma_data": sigma_data, "normalise": normalise, "c": c}
        return guarded_reference(lambda *given: scm_loss_reference(*given, **options), output, *constants, log_weight)
    wanted = wants_gradient(output), wants_gradient(log_weight)
    loss, dropped, *_ = _scm(output, *constants, log_weight, warmup, sigma_data, normalise == "rms", c, *wanted)
    return GuardedLoss(loss, dropped)


@triton.jit
def _cos_sin(t_ptr, sample):  # type: ignore[no-untyped-def]
    """cos(t) and sin(t) for t in [0, pi/2] to the last bit or two of float32, by Cephes' polynomials up to pi/4.

    Triton's own keep a table on the stack, for arguments of any size.
    """
    t = tl.load(t_ptr + sample).to(tl.float64)
    beyond = t > HALF_PI / 2.0
    angle = tl.where(beyond, HALF_PI - t, t).to(tl.float32)
    square = angle * angle
    odd = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
    even = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    sin, cos = angle + angle * square * odd, 1.0 - 0.5 * square + square * square * even
    return tl.where(beyond, sin, cos), tl.where(beyond, cos, sin)


@triton.jit
def _tangent(  # type: ignore[no-untyped-def]
    target_output, tangent_ptr, jvp_ptr, x_ptr, offset, inside, cos, sin, warmup, sigma_data
):
    """One block of h before it is normalised, 0 outside of the sample."""
    teacher_tangent = tl.load(tangent_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    jvp = tl.load(jvp_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    x_t = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    return -cos * cos * (sigma_data * target_output - teacher_tangent) - warmup * (cos * sin * x_t + sigma_data * jvp)


@Kernel
def _sums_kernel(  # type: ignore[no-untyped-def]
    output_ptr,
    target_ptr,
    tangent_ptr,
    jvp_ptr,
    x_ptr,
    t_ptr,
    partial_ptr,
    num_elements,
    warmup,
    sigma_data,
    BLOCK: tl.constexpr,
):
    """One block of one sample: its share of the sums of h**2, of (F - F-)**2 and of h (F - F-)."""
    block, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index = block * BLOCK + tl.arange(0, BLOCK)
    offset, inside = sample * num_elements + index, index < num_elements
    cos, sin = _cos_sin(t_ptr, sample)
    output = tl.load(output_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    target_output = tl.load(target_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    h = _tangent(target_output, tangent_ptr, jvp_ptr, x_ptr, offset, inside, cos, sin, warmup, sigma_data)
    ahead = output - target_output
    count = tl.num_programs(0) * tl.num_programs(1)
    part = partial_ptr + sample * tl.num_programs(0) + block
    tl.store(part, tl.sum(h * h, axis=0))
    tl.store(part + count, tl.sum(ahead * ahead, axis=0))
    tl.store(part + 2 * count, tl.sum(h * ahead, axis=0))


@Kernel
def _terms_kernel(  # type: ignore[no-untyped-def]
    output_ptr,
    target_ptr,
    tangent_ptr,
    jvp_ptr,
    x_ptr,
    t_ptr,
    log_weight_ptr,
    partial_ptr,
    loss_ptr,
    dropped_ptr,
    factor_ptr,
    derivative_ptr,
    by_log_weight_ptr,
    num_elements,
    num_partials,
    warmup,
    sigma_data,
    c,
    RMS: tl.constexpr,
    BY_OUTPUT: tl.constexpr,
    BY_LOG_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample: its error, which is the derivative over 2 v / n; the first block finishes the loss."""
    block, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    cos, sin = _cos_sin(t_ptr, sample)
    if BY_OUTPUT:
        index = block * BLOCK + tl.arange(0, BLOCK)
        offset, inside = sample * num_elements + index, index < num_elements
        output = tl.load(output_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        target_output = tl.load(target_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        h = _tangent(target_output, tangent_ptr, jvp_ptr, x_ptr, offset, inside, cos, sin, warmup, sigma_data)
    squared_tangent = row_total(partial_ptr, sample, num_partials, PARTIALS)
    norm = tl.sqrt(squared_tangent / num_elements if RMS else squared_tangent) + c
    if BY_OUTPUT:
        error = output - target_output - h / norm
        tl.store(derivative_ptr + offset, error.to(derivative_ptr.dtype.element_ty), mask=inside)
    if block == 0:
        count = num_partials * tl.num_programs(1)
        squared = row_total(partial_ptr + count, sample, num_partials, PARTIALS).to(tl.float64)
        product = row_total(partial_ptr + 2 * count, sample, num_partials, PARTIALS).to(tl.float64)
        total = (squared - 2.0 * product / norm + squared_tangent.to(tl.float64) / (norm * norm)).to(tl.float32)
        u = tl.load(log_weight_ptr + sample).to(tl.float32)
        prior = tl.where(cos < 0.0, 0.0, cos) / (sigma_data * tl.where(sin < SMALLEST_SIN, SMALLEST_SIN, sin))
        v = tl.exp(-u.to(tl.float64)).to(tl.float32) * prior  # float32's own exponential is an approximation on a GPU
        weighted = v * (tl.where(total < 0.0, 0.0, total) / num_elements)
        dropped = guard(loss_ptr, dropped_ptr, factor_ptr, sample, weighted + u, 2.0 * v / num_elements)
        if BY_LOG_WEIGHT:
            by_log_weight = tl.where(dropped, 0.0, 1.0 - weighted)
            tl.store(by_log_weight_ptr + sample, by_log_weight.to(by_log_weight_ptr.dtype.element_ty))


@torch.library.custom_op("ddx::scm_tangent", mutates_args=())
def _scm(
    output: Tensor,
    target_output: Tensor,
    teacher_tangent: Tensor,
    jvp: Tensor,
    x_t: Tensor,
    t: Tensor,
    log_weight: Tensor,
    warmup: float,
    sigma_data: float,
    rms: bool,
    c: float,
    by_output: bool,
    by_log_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, dropped, 2 v / n, `[B]` each; the derivatives by output, over 2 v / n, and by u)."""
    batch, device = len(output), output.device
    num_elements = output.numel() // batch
    inputs = [value.contiguous() for value in (output, target_output, teacher_tangent, jvp, x_t, t)]
    sums_options, options = SUMS.options(device), TERMS.options(device)
    num_partials = blocks(num_elements, sums_options["BLOCK"])
    partial = torch.empty(3, batch, num_partials, dtype=torch.float32, device=device)
    _sums_kernel.launch((num_partials, batch), device, sums_options, *inputs, partial, num_elements, warmup, sigma_data)
    outputs = new_outputs(batch, (output, log_weight), (by_output, by_log_weight))
    _terms_kernel.launch(
        (blocks(num_elements, options["BLOCK"]) if by_output else 1, batch),
        device,
        options.joined(RMS=rms, BY_OUTPUT=by_output, BY_LOG_WEIGHT=by_log_weight),
        *inputs,
        log_weight.contiguous(),
        partial,
        *outputs,
        num_elements,
        num_partials,
        warmup,
        sigma_data,
        c,
    )
    loss, dropped, factor, d_output, d_log_weight = outputs
    return loss, dropped, factor, d_output, d_log_weight


@_scm.register_fake
def _(
    output: Tensor,
    target_output: Tensor,
    teacher_tangent: Tensor,
    jvp: Tensor,
    x_t: Tensor,
    t: Tensor,
    log_weight: Tensor,
    warmup: float,
    sigma_data: float,
    rms: bool,
    c: float,
    by_output: bool,
    by_log_weight: bool,
) -> tuple[Tensor, ...]:
    return new_outputs(len(output), (output, log_weight), (by_output, by_log_weight))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    keep_derivatives(ctx, output[0], *output[2:])


def _backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    loss, factor, d_output, d_log_weight = ctx.saved_tensors
    by_output, by_log_weight = scaled_gradients(g, loss, factor, d_output, by_sample=d_log_weight)
    return by_output, *5 * [None], by_log_weight, *6 * [None]


_scm.register_autograd(_backward, setup_context=_save)
