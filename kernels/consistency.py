"""The consistency loss: pseudo-Huber or squared distance of two predictions, one value a sample.

    pseudo-Huber   l_b = w_b mean_i( sqrt(d_i**2 + c**2) - c ),   d = prediction - target
    squared        l_b = w_b mean_i( d_i**2 )                      (c is None)

Luo et al. 2023 (latent consistency, c = 0.001); Song & Dhariwal 2023 (pseudo-Huber). The difference of the two
roots is computed as ``d**2 / (sqrt(d**2 + c**2) + c)``, which loses nothing where d is much smaller than c.

Three launches: the terms and their derivative, which reads both predictions once; the sum of each sample; and in the
backward pass the factor w_b / n.
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
from ddx.kernels.per_sample import as_rows, check_per_sample, check_samples, row_total

_BLOCKS = ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 512, "num_warps": 2}, {"BLOCK": 2048, "num_warps": 8})
TERMS = Launch("consistency", default=_BLOCKS[0], candidates=_BLOCKS)
TOTALS = Launch("consistency_totals", default={"WIDTH": 128, "num_warps": 1})


def consistency_loss_reference(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, c: float | None = 0.001
) -> Tensor:
    """The loss in plain torch, without the guard; see :func:`consistency_loss`.

    float64 inputs are computed in float64.
    """
    compute = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    squared = (prediction.to(compute) - target.to(compute)).square().flatten(1)
    terms = squared if c is None else squared / (torch.sqrt(squared + c * c) + c)
    loss = terms.mean(dim=1)
    return loss if weight is None else loss * weight.to(loss)


def consistency_loss(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, c: float | None = 0.001
) -> Tensor:
    """The loss of each sample, float32 ``[B]`` (float64 for float64 inputs), differentiable by the prediction.

    prediction, target: ``[B, ...]``, equal shapes, any float dtype; the target is a constant (no gradient).
    weight: ``[B]`` or None for ones, a constant. c: the Huber constant > 0, or None for the squared distance. A sample
    whose loss is not finite counts as 0 and has zero gradients, see :mod:`ddx.kernels.guarded_loss`;
    :func:`guarded_consistency_loss` tells which.

    Raises ValueError for shapes and values that do not fit, and NotImplementedError under forward-mode AD: use
    :func:`consistency_loss_reference` there.
    """
    return guarded_consistency_loss(prediction, target, weight, c=c).loss


def guarded_consistency_loss(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, c: float | None = 0.001
) -> GuardedLoss:
    """:func:`consistency_loss`, and which samples were dropped."""
    check_samples(prediction=prediction, target=target)
    check_per_sample(len(prediction), weight=weight)
    if c is not None and not c > 0:
        raise ValueError(f"c must be positive, got {c}; None takes the squared distance")
    refuse_forward_ad("consistency_loss")
    target = target.detach()
    weight = None if weight is None else weight.detach()
    if not dispatch.use_triton(prediction, target):
        return guarded_reference(lambda *given: consistency_loss_reference(*given, c=c), prediction, target, weight)
    c = -1.0 if c is None else c
    loss, dropped, *_ = _consistency(prediction, target, weight, c, wants_gradient(prediction))
    return GuardedLoss(loss, dropped)


@Kernel
def _terms_kernel(  # type: ignore[no-untyped-def]
    prediction_ptr,
    target_ptr,
    derivative_ptr,
    partial_ptr,
    num_elements,
    prediction_stride,
    target_stride,
    c,
    HUBER: tl.constexpr,
    WANTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample: its share of the sum, and the derivative of each term."""
    block, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_elements
    prediction = tl.load(prediction_ptr + sample * prediction_stride + index, mask=inside, other=0.0)
    target = tl.load(target_ptr + sample * target_stride + index, mask=inside, other=0.0)
    difference = prediction.to(tl.float32) - target.to(tl.float32)
    if HUBER:
        root = tl.sqrt(difference * difference + c * c)
        term = difference * difference / (root + c)
        derivative = difference / root
    else:
        term = difference * difference
        derivative = 2.0 * difference
    if WANTED:
        value = derivative.to(derivative_ptr.dtype.element_ty)
        tl.store(derivative_ptr + sample * num_elements + index, value, mask=inside)
    tl.store(partial_ptr + sample * tl.num_programs(0) + block, tl.sum(term, axis=0))


@Kernel
def _totals_kernel(  # type: ignore[no-untyped-def]
    partial_ptr,
    weight_ptr,
    loss_ptr,
    dropped_ptr,
    factor_ptr,
    num_blocks,
    num_elements,
    WEIGHTED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One sample: its loss, and the weight of each of its terms."""
    sample = tl.program_id(0).to(tl.int64)
    loss = row_total(partial_ptr, sample, num_blocks, WIDTH) / num_elements
    factor = 1.0 / num_elements
    if WEIGHTED:
        weight = tl.load(weight_ptr + sample).to(tl.float32)
        loss *= weight
        factor *= weight
    guard(loss_ptr, dropped_ptr, factor_ptr, sample, loss, factor)


@torch.library.custom_op("ddx::consistency", mutates_args=())
def _consistency(
    prediction: Tensor, target: Tensor, weight: Tensor | None, c: float, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, dropped, weight of a term, `[B]` each, the derivative of each term if it is wanted); c < 0 is squared."""
    rows = [as_rows(prediction), as_rows(target)]
    batch, num_elements = rows[0].shape
    device = prediction.device
    options = TERMS.options(device)
    num_blocks = blocks(num_elements, options["BLOCK"])
    loss, dropped, factor, derivative = new_outputs(batch, (prediction,), (wanted,))
    partial = torch.empty(batch, num_blocks, dtype=torch.float32, device=device)
    _terms_kernel.launch(
        (num_blocks, batch),
        device,
        options.joined(HUBER=c > 0, WANTED=wanted),
        *rows,
        derivative,
        partial,
        num_elements,
        rows[0].stride(0),
        rows[1].stride(0),
        c,
    )
    _totals_kernel.launch(
        (batch,),
        device,
        TOTALS.options(device).joined(WEIGHTED=weight is not None),
        partial,
        partial if weight is None else weight.contiguous(),  # a pointer of some kind, not read without weights
        loss,
        dropped,
        factor,
        num_blocks,
        num_elements,
    )
    return loss, dropped, factor, derivative


@_consistency.register_fake
def _(prediction: Tensor, target: Tensor, weight: Tensor | None, c: float, wanted: bool) -> tuple[Tensor, ...]:
    return new_outputs(len(prediction), (prediction,), (wanted,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    keep_derivatives(ctx, output[0], *output[2:])


def _backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *scaled_gradients(g, *ctx.saved_tensors), None, None, None, None


_consistency.register_autograd(_backward, setup_context=_save)
