"""Sums of samples with coefficients by sample: the one pass that noising, guided solver steps and boundaries all are.

    x_b = sum_k c_k[b] x_k[b],   one to four terms;   gradient of x_k: c_k g

    noising              alpha x0 + sigma eps
    guidance and a step  c_x x_t + c_0 v_null + c_1 v_cond      c_1 = cfg (r - t), c_0 = (1 - cfg) (r - t) for Euler
    boundary             c_skip x + c_out F                     (Song et al. 2023)

Linear in all tensors at once, so its tangent is the same sum of the tangents: there is no dual of its own. Terms are
added from left to right in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.launch import Launch
from ddx.kernels.samples import as_rows, check_per_sample, check_samples, per_sample

_BLOCKS = ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 512, "num_warps": 2}, {"BLOCK": 2048, "num_warps": 8})
FORWARD = Launch("weighted_sum", default=_BLOCKS[0], candidates=_BLOCKS)
BACKWARD = Launch("weighted_sum_backward", default=_BLOCKS[0], candidates=_BLOCKS)


def weighted_sum_reference(tensors: Sequence[Tensor], coefficients: Sequence[Tensor]) -> Tensor:
    """The sum in plain torch; see :func:`weighted_sum`. float64 tensors are added in float64."""
    dtype = _promoted(tensors)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    terms = [
        per_sample(coefficient.to(compute), x) * x.to(compute)
        for x, coefficient in zip(tensors, coefficients, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.to(dtype)


def weighted_sum(tensors: Sequence[Tensor], coefficients: Sequence[Tensor]) -> Tensor:
    """The sum over k of ``coefficients[k][b] * tensors[k][b]``, `[B, ...]`, differentiable by the tensors.

    tensors: one to four `[B, ...]` of one shape, any float dtypes; the result has the dtype that they promote to.
    coefficients: as many `[B]`, float32 or float64, on the same device, constants (no gradient).

    Raises ValueError for shapes and numbers of terms that do not fit.
    """
    if not 1 <= len(tensors) <= 4 or len(tensors) != len(coefficients):
        raise ValueError(
            f"one to four tensors, each with a coefficient: got {len(tensors)} and {len(coefficients)} of them"
        )
    check_samples(**{f"tensors[{k}]": x for k, x in enumerate(tensors)})
    check_per_sample(len(tensors[0]), **{f"coefficients[{k}]": c for k, c in enumerate(coefficients)})
    coefficients = [coefficient.detach() for coefficient in coefficients]
    if not dispatch.use_triton(*tensors):
        return weighted_sum_reference(tensors, coefficients)
    total: Tensor = _weighted_sum(list(tensors), coefficients)
    return total


def _promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _four(values: Sequence[Any]) -> list[Any]:
    """Four of these: the first stands for those that a kernel does not read."""
    return [*values, *[values[0]] * (4 - len(values))]


@triton.jit
def _term(x_ptr, x_stride, c_ptr, c_stride, sample, index, inside):  # type: ignore[no-untyped-def]
    x = tl.load(x_ptr + sample * x_stride + index, mask=inside, other=0.0).to(tl.float32)
    return tl.load(c_ptr + sample * c_stride).to(tl.float32) * x


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def]
    x0_ptr,
    x1_ptr,
    x2_ptr,
    x3_ptr,
    c0_ptr,
    c1_ptr,
    c2_ptr,
    c3_ptr,
    total_ptr,
    num_elements,
    x0_stride,
    x1_stride,
    x2_stride,
    x3_stride,
    c0_stride,
    c1_stride,
    c2_stride,
    c3_stride,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample."""
    sample = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_elements
    total = _term(x0_ptr, x0_stride, c0_ptr, c0_stride, sample, index, inside)
    if COUNT > 1:
        total += _term(x1_ptr, x1_stride, c1_ptr, c1_stride, sample, index, inside)
    if COUNT > 2:
        total += _term(x2_ptr, x2_stride, c2_ptr, c2_stride, sample, index, inside)
    if COUNT > 3:
        total += _term(x3_ptr, x3_stride, c3_ptr, c3_stride, sample, index, inside)
    offset = sample * num_elements + index
    tl.store(total_ptr + offset, total.to(total_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient(gradient_ptr, g, c_ptr, c_stride, sample, offset, inside):  # type: ignore[no-untyped-def]
    gradient = tl.load(c_ptr + sample * c_stride).to(tl.float32) * g
    tl.store(gradient_ptr + offset, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    c0_ptr,
    c1_ptr,
    c2_ptr,
    c3_ptr,
    gradient_0_ptr,
    gradient_1_ptr,
    gradient_2_ptr,
    gradient_3_ptr,
    num_elements,
    g_stride,
    c0_stride,
    c1_stride,
    c2_stride,
    c3_stride,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample, for the COUNT tensors that need a gradient."""
    sample = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offset, inside = sample * num_elements + index, index < num_elements
    g = tl.load(g_ptr + sample * g_stride + index, mask=inside, other=0.0).to(tl.float32)
    _gradient(gradient_0_ptr, g, c0_ptr, c0_stride, sample, offset, inside)
    if COUNT > 1:
        _gradient(gradient_1_ptr, g, c1_ptr, c1_stride, sample, offset, inside)
    if COUNT > 2:
        _gradient(gradient_2_ptr, g, c2_ptr, c2_stride, sample, offset, inside)
    if COUNT > 3:
        _gradient(gradient_3_ptr, g, c3_ptr, c3_stride, sample, offset, inside)


@torch.library.custom_op("ddx::weighted_sum", mutates_args=())
def _weighted_sum(tensors: list[Tensor], coefficients: list[Tensor]) -> Tensor:
    """The sum, contiguous."""
    rows = [as_rows(x) for x in tensors]
    batch, num_elements = rows[0].shape
    total = torch.empty(tensors[0].shape, dtype=_promoted(tensors), device=rows[0].device)
    options = FORWARD.options(total.device)
    _forward_kernel[(triton.cdiv(num_elements, options["BLOCK"]), batch)](
        *_four(rows),
        *_four(coefficients),
        total,
        num_elements,
        *_four([x.stride(0) for x in rows]),
        *_four([coefficient.stride(0) for coefficient in coefficients]),
        COUNT=len(tensors),
        **options,
    )
    return total


@_weighted_sum.register_fake
def _(tensors: list[Tensor], coefficients: list[Tensor]) -> Tensor:
    return tensors[0].new_empty(tensors[0].shape, dtype=_promoted(tensors))


@torch.library.custom_op("ddx::weighted_sum_backward", mutates_args=())
def weighted_sum_backward(g: Tensor, coefficients: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The gradients of those tensors that need one, in the dtypes of `like`, from the gradient g of the sum."""
    rows = as_rows(g)
    batch, num_elements = rows.shape
    gradients = [torch.empty(g.shape, dtype=x.dtype, device=g.device) for x in like]
    options = BACKWARD.options(g.device)
    _backward_kernel[(triton.cdiv(num_elements, options["BLOCK"]), batch)](
        rows,
        *_four(coefficients),
        *_four(gradients),
        num_elements,
        rows.stride(0),
        *_four([coefficient.stride(0) for coefficient in coefficients]),
        COUNT=len(gradients),
        **options,
    )
    return gradients


@weighted_sum_backward.register_fake
def _(g: Tensor, coefficients: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    return [g.new_empty(g.shape, dtype=x.dtype) for x in like]


def _save(ctx: Any, inputs: tuple[list[Tensor], list[Tensor]], output: Tensor) -> None:
    tensors, coefficients = inputs
    ctx.save_for_backward(*coefficients, *(x.new_empty(0) for x in tensors))  # of the tensors their dtypes alone


def _backward(ctx: Any, g: Tensor) -> tuple[list[Tensor | None], list[None]]:
    needed = ctx.needs_input_grad[0]
    coefficients, like = ctx.saved_tensors[: len(needed)], ctx.saved_tensors[len(needed) :]
    chosen = [k for k, need in enumerate(needed) if need]
    found = iter(weighted_sum_backward(g, [coefficients[k] for k in chosen], [like[k] for k in chosen]))
    return [next(found) if need else None for need in needed], [None] * len(coefficients)


_weighted_sum.register_autograd(_backward, setup_context=_save)
