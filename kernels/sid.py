"""The generator's loss of score identity distillation (SiD).

    d = y_phi - y_psi,  u = y_phi - x,  w = max(mean_i |x_i - y_phi_i|, 1e-5), a constant
    l_b      = sum_i (c1 d u - alpha d**2) / w
    dl/y_phi = (c1 (u + d) - 2 alpha d) / w,  dl/y_psi = (2 alpha d - c1 u) / w,  dl/x = -c1 d / w

Zhou et al. 2024 (arXiv:2404.04057): y_phi and y_psi are the predictions of x0
by the teacher and by the fake score at the re-noised x, through both of which gradients flow on into x. With c1 = 1
and y_phi, y_psi held constant the gradient on x is DMD's, (y_psi - y_phi) / w.

Three launches: the terms and their derivatives, the sums of each sample, and in the backward pass the factor 1 / w.
"""

from __future__ import annotations

from typing import Any

import torch
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
from ddx.kernels.per_sample import as_rows, check_samples, row_total

_BLOCKS = ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 512, "num_warps": 2}, {"BLOCK": 2048, "num_warps": 8})
TERMS = Launch("sid", default=_BLOCKS[0], candidates=_BLOCKS)
TOTALS = Launch("sid_totals", default={"WIDTH": 128, "num_warps": 1})


def sid_loss_reference(y_teacher: Tensor, y_fake: Tensor, x: Tensor, *, alpha: float = 1.0, c1: float = 1.0) -> Tensor:
    """The loss in plain torch, without the guard; see :func:`sid_loss`. float64 inputs are computed in float64."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    y_teacher, y_fake, x = (value.to(compute).flatten(1) for value in (y_teacher, y_fake, x))
    d, u = y_teacher - y_fake, y_teacher - x
    w = u.detach().abs().mean(dim=1).clamp(min=1e-5)
    return (c1 * d * u - alpha * d * d).sum(dim=1) / w


def sid_loss(y_teacher: Tensor, y_fake: Tensor, x: Tensor, *, alpha: float = 1.0, c1: float = 1.0) -> Tensor:
    """The loss of each sample, float32 `[B]` (float64 for float64 inputs), differentiable by all three.

    y_teacher, y_fake, x: `[B, ...]`, equal shapes, any float dtypes, each its own gradient's. alpha: 1 or 1.2 in the
    paper. A sample whose loss is not finite counts as 0 and has zero gradients, see :mod:`ddx.kernels.guarded_loss`;
    :func:`guarded_sid_loss` tells which.

    Raises ValueError for shapes that do not fit, and NotImplementedError under forward-mode AD.
    """
    return guarded_sid_loss(y_teacher, y_fake, x, alpha=alpha, c1=c1).loss


def guarded_sid_loss(
    y_teacher: Tensor, y_fake: Tensor, x: Tensor, *, alpha: float = 1.0, c1: float = 1.0
) -> GuardedLoss:
    """:func:`sid_loss`, and which samples were dropped."""
    check_samples(y_teacher=y_teacher, y_fake=y_fake, x=x)
    refuse_forward_ad("sid_loss")
    if not dispatch.use_triton(y_teacher, y_fake, x):
        return guarded_reference(lambda *given: sid_loss_reference(*given, alpha=alpha, c1=c1), y_teacher, y_fake, x)
    wanted = [wants_gradient(value) for value in (y_teacher, y_fake, x)]
    loss, dropped, *_ = _sid(y_teacher, y_fake, x, alpha, c1, wanted)
    return GuardedLoss(loss, dropped)


@Kernel
def _terms_kernel(  # type: ignore[no-untyped-def]
    teacher_ptr,
    fake_ptr,
    x_ptr,
    d_teacher_ptr,
    d_fake_ptr,
    d_x_ptr,
    partial_ptr,
    distance_ptr,
    num_elements,
    teacher_stride,
    fake_stride,
    x_stride,
    alpha,
    c1,
    BY_TEACHER: tl.constexpr,
    BY_FAKE: tl.constexpr,
    BY_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample: its share of both sums, and the derivatives times w."""
    block, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index = block * BLOCK + tl.arange(0, BLOCK)
    offset, inside = sample * num_elements + index, index < num_elements
    y_teacher = tl.load(teacher_ptr + sample * teacher_stride + index, mask=inside, other=0.0).to(tl.float32)
    y_fake = tl.load(fake_ptr + sample * fake_stride + index, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + sample * x_stride + index, mask=inside, other=0.0).to(tl.float32)
    d, u = y_teacher - y_fake, y_teacher - x
    if BY_TEACHER:
        derivative = c1 * (u + d) - 2.0 * alpha * d
        tl.store(d_teacher_ptr + offset, derivative.to(d_teacher_ptr.dtype.element_ty), mask=inside)
    if BY_FAKE:
        derivative = 2.0 * alpha * d - c1 * u
        tl.store(d_fake_ptr + offset, derivative.to(d_fake_ptr.dtype.element_ty), mask=inside)
    if BY_X:
        tl.store(d_x_ptr + offset, (-c1 * d).to(d_x_ptr.dtype.element_ty), mask=inside)
    part = sample * tl.num_programs(0) + block
    tl.store(partial_ptr + part, tl.sum(c1 * d * u - alpha * d * d, axis=0))
    tl.store(distance_ptr + part, tl.sum(tl.abs(u), axis=0))


@Kernel
def _totals_kernel(  # type: ignore[no-untyped-def]
    partial_ptr,
    distance_ptr,
    loss_ptr,
    dropped_ptr,
    factor_ptr,
    num_blocks,
    num_elements,
    WIDTH: tl.constexpr,
):
    """One sample: its loss, and 1 / w."""
    sample = tl.program_id(0).to(tl.int64)
    distance = row_total(distance_ptr, sample, num_blocks, WIDTH) / num_elements
    w = tl.where(distance < 1e-5, 1e-5, distance)  # tl.maximum would lose a NaN
    loss = row_total(partial_ptr, sample, num_blocks, WIDTH) / w
    guard(loss_ptr, dropped_ptr, factor_ptr, sample, loss, 1.0 / w)


@torch.library.custom_op("ddx::sid", mutates_args=())
def _sid(
    y_teacher: Tensor, y_fake: Tensor, x: Tensor, alpha: float, c1: float, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss `[B]`, dropped `[B]`, 1 / w `[B]`, the derivatives times w by y_teacher, y_fake and x where wanted)."""
    rows = [as_rows(value) for value in (y_teacher, y_fake, x)]
    batch, num_elements = rows[0].shape
    options = TERMS.options(x.device)
    num_blocks = blocks(num_elements, options["BLOCK"])
    loss, dropped, factor, *derivatives = new_outputs(batch, (y_teacher, y_fake, x), wanted)
    partial = torch.empty(batch, num_blocks, dtype=torch.float32, device=x.device)
    distance = torch.empty(batch, num_blocks, dtype=torch.float32, device=x.device)
    _terms_kernel.launch(
        (num_blocks, batch),
        x.device,
        options.joined(BY_TEACHER=wanted[0], BY_FAKE=wanted[1], BY_X=wanted[2]),
        *rows,
        *derivatives,
        partial,
        distance,
        num_elements,
        *(value.stride(0) for value in rows),
        alpha,
        c1,
    )
    _totals_kernel.launch(
        (batch,),
        x.device,
        TOTALS.options(x.device),
        partial,
        distance,
        loss,
        dropped,
        factor,
        num_blocks,
        num_elements,
    )
    return loss, dropped, factor, derivatives[0], derivatives[1], derivatives[2]


@_sid.register_fake
def _(y_teacher: Tensor, y_fake: Tensor, x: Tensor, alpha: float, c1: float, wanted: list[bool]) -> tuple[Tensor, ...]:
    return new_outputs(len(x), (y_teacher, y_fake, x), wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    keep_derivatives(ctx, output[0], *output[2:])


def _backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *scaled_gradients(g, *ctx.saved_tensors), None, None, None


_sid.register_autograd(_backward, setup_context=_save)
