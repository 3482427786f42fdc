"""The consistency loss: pseudo-Huber or squared distance of two predictions, one value a sample.

    pseudo-Huber   l_b = w_b mean_i( sqrt(d_i**2 + c**2) - c ),   d = prediction - target
    squared        l_b = w_b mean_i( d_i**2 )                      (c is None)

Luo et al. 2023 (latent consistency, c = 0.001); Song & Dhariwal 2023 (pseudo-Huber). The difference of the two
roots is computed as ``d**2 / (sqrt(d**2 + c**2) + c)``, which loses nothing where d is much smaller than c.

The kernel reads both predictions once and leaves the derivative by the prediction, without the weight, behind for
the backward pass; partial sums are added in a fixed order, so repeated runs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch

BLOCK, NUM_WARPS = 1024, 8  # elements a program, each of its threads reads four


def consistency_loss_reference(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, c: float | None = 0.001
) -> Tensor:
    """The loss in plain torch; see :func:`consistency_loss`. float64 inputs are computed in float64."""
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
    weight: ``[B]`` or None for ones, a constant. c: the Huber constant > 0, or None for the squared distance.

    Raises ValueError for shapes and values that do not fit, and NotImplementedError under forward-mode AD: use
    :func:`consistency_loss_reference` there.
    """
    if prediction.shape != target.shape or prediction.ndim < 2 or prediction.numel() == 0:
        raise ValueError(
            f"prediction and target must be [B, ...], equal and not empty; got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}"
        )
    if weight is not None and weight.shape != prediction.shape[:1]:
        raise ValueError(f"weight must be [{prediction.shape[0]}], got {tuple(weight.shape)}")
    if c is not None and not c > 0:
        raise ValueError(f"c must be positive, got {c}; None takes the squared distance")
    if dispatch.in_forward_ad():
        raise NotImplementedError("consistency_loss has no forward-mode derivative; use consistency_loss_reference")
    target = target.detach()
    weight = None if weight is None else weight.detach()
    if dispatch.backend(prediction.device.type) == "torch" or prediction.dtype == torch.float64:
        return consistency_loss_reference(prediction, target, weight, c=c)
    loss: Tensor = _distance(prediction, target, weight, -1.0 if c is None else c)[0]
    return loss


@triton.jit  # type: ignore[untyped-decorator]
def _distance_kernel(  # type: ignore[no-untyped-def]
    prediction_ptr,
    target_ptr,
    weight_ptr,
    derivative_ptr,
    partial_ptr,
    num_elements,
    c,
    HUBER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample: its share of the sum, and the derivative of each term."""
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_elements
    offset = sample * num_elements + index
    prediction = tl.load(prediction_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    difference = prediction - target
    if HUBER:
        root = tl.sqrt(difference * difference + c * c)
        term = difference * difference / (root + c)
        derivative = difference / root
    else:
        term = difference * difference
        derivative = 2.0 * difference
    tl.store(derivative_ptr + offset, derivative.to(derivative_ptr.dtype.element_ty), mask=inside)
    total = tl.sum(tl.where(inside, term, 0.0), axis=0) / num_elements
    if WEIGHTED:
        total *= tl.load(weight_ptr + sample).to(tl.float32)
    tl.store(partial_ptr + sample * tl.num_programs(0) + block, total)


@torch.library.custom_op("ddx::consistency_distance", mutates_args=())
def _distance(prediction: Tensor, target: Tensor, weight: Tensor | None, c: float) -> tuple[Tensor, Tensor]:
    """(loss float32 ``[B]``, derivative of each term in the prediction's dtype); c < 0 is squared."""
    prediction, target = prediction.contiguous(), target.contiguous()
    batch = prediction.shape[0]
    num_elements = prediction.numel() // batch
    num_blocks = triton.cdiv(num_elements, BLOCK)
    derivative = torch.empty_like(prediction)
    partial = torch.empty(batch, num_blocks, dtype=torch.float32, device=prediction.device)
    _distance_kernel[(num_blocks, batch)](
        prediction,
        target,
        partial if weight is None else weight.contiguous(),  # a pointer of some kind, not read without weights
        derivative,
        partial,
        num_elements,
        c,
        HUBER=c > 0,
        WEIGHTED=weight is not None,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,  # stated, so that a new default never changes a loss
    )
    return partial.sum(dim=1), derivative


@_distance.register_fake
def _(prediction: Tensor, target: Tensor, weight: Tensor | None, c: float) -> tuple[Tensor, Tensor]:
    shape = prediction.shape
    return prediction.new_empty(shape[0], dtype=torch.float32), prediction.new_empty(shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[2])


def _backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    derivative, weight = ctx.saved_tensors
    rows = loss_gradient / (derivative.numel() // len(derivative))
    if weight is not None:
        rows = rows * weight.float()
    # the product is taken in float32, so that small weights do not vanish before they meet the derivative
    return (derivative * rows.reshape(-1, *(1,) * (derivative.ndim - 1))).to(derivative.dtype), None, None, None


_distance.register_autograd(_backward, setup_context=_save)
