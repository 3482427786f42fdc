"""The generator's loss of distribution matching distillation (DMD), and of Diff-Instruct and VSD.

    grad = (y_psi - y_phi) / w,   w = max(mean_i |x_i - y_phi_i|, 1e-5), or 1 without normalisation
    l_b  = sum_i grad**2 / 2,     dl/x = grad

Yin et al. 2024 (arXiv:2311.18828), as 1/2 |x - stopgrad(x - grad)|^2; w = 1 is Diff-Instruct (Luo et
al. 2023, arXiv:2305.18455) and VSD (Wang et al. 2023, arXiv:2305.16213). y_phi and y_psi are the predictions of x0 by
the teacher and by the fake score at the re-noised x, both constants here, as w is.

Three launches: the terms and their derivative, the sums of each sample, and in the backward pass the factor 1 / w.
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
TERMS = Launch("dmd", default=_BLOCKS[0], candidates=_BLOCKS)
TOTALS = Launch("dmd_totals", default={"WIDTH": 128, "num_warps": 1})


def dmd_loss_reference(y_teacher: Tensor, y_fake: Tensor, x: Tensor, *, normalise: bool = True) -> Tensor:
    """The loss in plain torch, without the guard; see :func:`dmd_loss`. float64 inputs are computed in float64."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    y_teacher, y_fake, x = (value.to(compute).flatten(1) for value in (y_teacher.detach(), y_fake.detach(), x))
    grad = y_fake - y_teacher
    if normalise:
        grad = grad / (x.detach() - y_teacher).abs().mean(dim=1, keepdim=True).clamp(min=1e-5)
    # x - x.detach() is 0 with the gradient of x: x - stopgrad(x - grad) without its rounding
    return 0.5 * (grad + (x - x.detach())).square().sum(dim=1)


def dmd_loss(y_teacher: Tensor, y_fake: Tensor, x: Tensor, *, normalise: bool = True) -> Tensor:
    """The loss of each sample, float32 `[B]` (float64 for float64 inputs), differentiable by x alone.

    y_teacher, y_fake, x: `[B, ...]`, equal shapes, any float dtypes. normalise: whether w is DMD's or 1. A sample whose
    loss is not finite counts as 0 and has zero gradients, see :mod:`ddx.kernels.guarded_loss`;
    :func:`guarded_dmd_loss` tells which.

    Raises ValueError for shapes that do not fit, and NotImplementedError under forward-mode AD.
    """
    return guarded_dmd_loss(y_teacher, y_fake, x, normalise=normalise).loss


def guarded_dmd_loss(y_teacher: Tensor, y_fake: Tensor, x: Tensor, *, normalise: bool = True) -> GuardedLoss:
    """:func:`dmd_loss`, and which samples were dropped."""
    check_samples(y_teacher=y_teacher, y_fake=y_fake, x=x)
    refuse_forward_ad("dmd_loss")
    if not dispatch.use_triton(y_teacher, y_fake, x):
        return guarded_reference(lambda *given: dmd_loss_reference(*given, normalise=normalise), y_teacher, y_fake, x)
    loss, dropped, *_ = _dmd(y_teacher.detach(), y_fake.detach(), x, normalise, wants_gradient(x))
    return GuardedLoss(loss, dropped)


@Kernel
def _terms_kernel(  # type: ignore[no-untyped-def]
    teacher_ptr,
    fake_ptr,
    x_ptr,
    derivative_ptr,
    partial_ptr,
    distance_ptr,
    num_elements,
    teacher_stride,
    fake_stride,
    x_stride,
    WANTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample: its share of both sums, and the derivative times w."""
    block, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_elements
    y_teacher = tl.load(teacher_ptr + sample * teacher_stride + index, mask=inside, other=0.0).to(tl.float32)
    y_fake = tl.load(fake_ptr + sample * fake_stride + index, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + sample * x_stride + index, mask=inside, other=0.0).to(tl.float32)
    difference = (y_fake - y_teacher) + (x - x)  # NaN where x is not finite, so that its sample is dropped
    if WANTED:
        value = difference.to(derivative_ptr.dtype.element_ty)
        tl.store(derivative_ptr + sample * num_elements + index, value, mask=inside)
    part = sample * tl.num_programs(0) + block
    tl.store(partial_ptr + part, tl.sum(difference * difference, axis=0))
    tl.store(distance_ptr + part, tl.sum(tl.abs(x - y_teacher), axis=0))


@Kernel
def _totals_kernel(  # type: ignore[no-untyped-def]
    partial_ptr,
    distance_ptr,
    loss_ptr,
    dropped_ptr,
    factor_ptr,
    num_blocks,
    num_elements,
    NORMALISE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One sample: its loss, and 1 / w."""
    sample = tl.program_id(0).to(tl.int64)
    scale = 1.0
    if NORMALISE:
        distance = row_total(distance_ptr, sample, num_blocks, WIDTH) / num_elements
        scale = 1.0 / tl.where(distance < 1e-5, 1e-5, distance)  # tl.maximum would lose a NaN
    loss = 0.5 * row_total(partial_ptr, sample, num_blocks, WIDTH) * scale * scale
    guard(loss_ptr, dropped_ptr, factor_ptr, sample, loss, scale)


@torch.library.custom_op("ddx::dmd", mutates_args=())
def _dmd(
    y_teacher: Tensor, y_fake: Tensor, x: Tensor, normalise: bool, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss `[B]`, dropped `[B]`, 1 / w `[B]`, the derivative by x times w if it is wanted)."""
    rows = [as_rows(value) for value in (y_teacher, y_fake, x)]
    batch, num_elements = rows[0].shape
    options = TERMS.options(x.device)
    num_blocks = blocks(num_elements, options["BLOCK"])
    loss, dropped, factor, derivative = new_outputs(batch, (x,), (wanted,))
    partial = torch.empty(batch, num_blocks, dtype=torch.float32, device=x.device)
    distance = torch.empty(batch, num_blocks, dtype=torch.float32, device=x.device)
    _terms_kernel.launch(
        (num_blocks, batch),
        x.device,
        options.joined(WANTED=wanted),
        *rows,
        derivative,
        partial,
        distance,
        num_elements,
        *(value.stride(0) for value in rows),
    )
    _totals_kernel.launch(
        (batch,),
        x.device,
        TOTALS.options(x.device).joined(NORMALISE=normalise),
        partial,
        distance,
        loss,
        dropped,
        factor,
        num_blocks,
        num_elements,
    )
    return loss, dropped, factor, derivative


@_dmd.register_fake
def _(y_teacher: Tensor, y_fake: Tensor, x: Tensor, normalise: bool, wanted: bool) -> tuple[Tensor, ...]:
    return new_outputs(len(x), (x,), (wanted,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    keep_derivatives(ctx, output[0], *output[2:])


def _backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, *scaled_gradients(g, *ctx.saved_tensors), None, None


_dmd.register_autograd(_backward, setup_context=_save)
