"""RMSNorm over the last axis: forward, backward and tangent.

    y  = w x rho,                      rho = 1 / sqrt(mean(x**2) + eps)         (Zhang & Sennrich 2019, equation 4)
    gx = rho (w g - x^ mean(w g x^)),  x^ = x rho;   gw = sum over rows of g x^
    dy = w rho (dx - x^ mean(x^ dx))

SANA-Sprint normalises queries and keys so, over all heads together. Statistics and sums are float32; the gradient of
the weight is added in two stages, in a fixed order, so repeated runs give the same bits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ddx.kernels import dispatch
from ddx.kernels.dual_linear import is_untouched
from ddx.kernels.launch import Kernel, Launch, blocks

_ROWS = ({"ROWS": 1, "num_warps": 4}, {"ROWS": 2, "num_warps": 4}, {"ROWS": 4, "num_warps": 8})
FORWARD = Launch("rms_norm", default=_ROWS[0], candidates=_ROWS)
BACKWARD = Launch("rms_norm_backward", default={"ROWS": 16, "num_warps": 4}, candidates=({"ROWS": 32, "num_warps": 8},))
DUAL = Launch("rms_norm_dual", default=_ROWS[0], candidates=_ROWS)


def rms_norm_reference(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """The norm in plain torch; see :func:`rms_norm`. float64 inputs are computed in float64."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    y = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.to(y.dtype)).to(x.dtype)


def rms_norm_dual_reference(
    x: Tensor, dx: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The norm and its tangent in plain torch; see :func:`rms_norm_dual`."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide, tangent = x.to(compute), dx.to(compute)
    rho = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    y = wide * rho
    dy = rho * (tangent - y * (y * tangent).mean(dim=-1, keepdim=True))
    if weight is not None:
        y, dy = y * weight.to(compute), dy * weight.to(compute)
    return y.to(x.dtype), dy.to(dx.dtype)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """x over its root mean square, `[..., D]` in x's dtype; differentiable by x and weight.

    x: `[..., D]`, rows of one stride; weight: `[D]` or None. Raises ValueError for shapes that do not fit.
    """
    _check(x, weight)
    if not dispatch.use_triton(x, weight):
        return rms_norm_reference(x, weight, eps=eps)
    y: Tensor = _rms_norm(x, weight, eps)[0]
    return y


def rms_norm_dual(x: Tensor, dx: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(:func:`rms_norm` of x, its tangent for the tangent dx of x), both `[..., D]`; without gradients.

    x, dx: equal shapes, each with rows of one stride. Raises ValueError for shapes that do not fit.
    """
    _check(x, weight)
    if dx.shape != x.shape:
        raise ValueError(f"x and dx must have one shape, got {tuple(x.shape)} and {tuple(dx.shape)}")
    if not dispatch.use_triton(x, dx, weight):
        return rms_norm_dual_reference(x, dx, weight, eps=eps)
    y, dy = _rms_norm_dual(x, dx, weight, eps)
    return y, dy


def is_rms_norm(norm: nn.Module, width: int) -> bool:
    """Whether `norm` is an RMSNorm over the whole width, with a weight alone: diffusers' class or torch's, by name."""
    weight = getattr(norm, "weight", None)
    return (
        type(norm).__name__ == "RMSNorm"
        and is_untouched(norm)
        and weight is not None
        and weight.shape == (width,)
        and getattr(norm, "bias", None) is None
        and getattr(norm, "eps", None) is not None
    )


def _check(x: Tensor, weight: Tensor | None) -> None:
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be [{x.shape[-1]}], got {tuple(weight.shape)}")


def _rows(x: Tensor) -> Tensor:
    """x as `[rows, D]` with stride 1 along D: a view wherever rows have one stride."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


@functools.cache
def _widths(width: int) -> dict[str, int]:
    return {"D": width, "BLOCK_D": triton.next_power_of_2(width)}


@Kernel
def _rms_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    y_ptr,
    rho_ptr,
    num_rows,
    x_stride,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows: their norm, and rho for the backward pass."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    rho = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    y = x * rho[:, None]
    if WEIGHTED:
        y *= tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + rows[:, None] * D + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rho_ptr + rows, rho, mask=rows < num_rows)


@Kernel
def _rms_norm_backward_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    x_ptr,
    weight_ptr,
    rho_ptr,
    gx_ptr,
    partial_ptr,
    num_rows,
    g_stride,
    x_stride,
    gx_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows, one after the other: the gradient of x, and these rows' part of the gradient of the weight."""
    columns = tl.arange(0, BLOCK_D)
    in_row = columns < D
    first = tl.program_id(0).to(tl.int64) * ROWS
    weight = tl.full([BLOCK_D], 1.0, tl.float32)
    if WEIGHTED:
        weight = tl.load(weight_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    for row in range(first, tl.minimum(first + ROWS, num_rows)):
        g = tl.load(g_ptr + row * g_stride + columns, mask=in_row, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_stride + columns, mask=in_row, other=0.0).to(tl.float32)
        rho = tl.load(rho_ptr + row)
        normalised = x * rho
        weighted = g * weight
        mean = tl.sum(weighted * normalised, axis=0) / D
        gx = rho * (weighted - normalised * mean)
        tl.store(gx_ptr + row * gx_stride + columns, gx.to(gx_ptr.dtype.element_ty), mask=in_row)
        total += g * normalised
    if WEIGHT_GRADIENT:
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * D + columns, total, mask=in_row)


@Kernel
def _rms_norm_dual_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    dx_ptr,
    weight_ptr,
    y_ptr,
    dy_ptr,
    num_rows,
    x_stride,
    dx_stride,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows: their norm and its tangent."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    dx = tl.load(dx_ptr + rows[:, None] * dx_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    rho = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    y = x * rho[:, None]
    dy = rho[:, None] * (dx - y * (tl.sum(y * dx, axis=1) / D)[:, None])
    if WEIGHTED:
        weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
        y, dy = y * weight, dy * weight
    tl.store(y_ptr + rows[:, None] * D + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(dy_ptr + rows[:, None] * D + columns[None, :], dy.to(dy_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("ddx::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """(y like x but contiguous, rho float32 `[rows]`)."""
    rows, width = _rows(x), x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rho = torch.empty(len(rows), dtype=torch.float32, device=x.device)
    options = FORWARD.options(x.device)
    _rms_norm_kernel.launch(
        (blocks(len(rows), options["ROWS"]),),
        x.device,
        options.joined(**_widths(width), WEIGHTED=weight is not None),
        rows,
        rho if weight is None else weight.contiguous(),  # a pointer of some kind, not read without a weight
        y,
        rho,
        len(rows),
        rows.stride(0),
        eps,
    )
    return y, rho


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


def rms_norm_backward_into(
    gx: Tensor, g: Tensor, x: Tensor, weight: Tensor | None, rho: Tensor, weight_gradient: bool
) -> Tensor:
    """Write the gradient of x into gx, which may be g itself; return that of the weight, float32 `[D]` (`[0]` without).

    gx: `[..., D]`, a tensor or a view whose rows have one stride; g, x: shaped as gx; rho: float32, one a row.
    """
    rows, gradients, width = _rows(x), _rows(g), x.shape[-1]
    written = gx.view(-1, width)
    options = BACKWARD.options(x.device)
    num_programs = blocks(len(rows), options["ROWS"])
    partial = torch.empty(num_programs if weight_gradient else 0, width, dtype=torch.float32, device=x.device)
    _rms_norm_backward_kernel.launch(
        (num_programs,),
        x.device,
        options.joined(**_widths(width), WEIGHTED=weight is not None, WEIGHT_GRADIENT=weight_gradient),
        gradients,
        rows,
        rho if weight is None else weight.contiguous(),
        rho,
        written,
        partial,
        len(rows),
        gradients.stride(0),
        rows.stride(0),
        written.stride(0),
    )
    return partial.sum(dim=0) if weight_gradient else partial.reshape(0)


@torch.library.custom_op("ddx::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, rho: Tensor, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of x like x, gradient of the weight float32 `[D]`, or `[0]` if it is not asked for)."""
    gx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return gx, rms_norm_backward_into(gx, g, x, weight, rho, weight_gradient)


@_rms_norm_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor | None, rho: Tensor, weight_gradient: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[-1] if weight_gradient else 0, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, weight, rho = ctx.saved_tensors
    wanted = weight is not None and ctx.needs_input_grad[1]
    gx, gw = _rms_norm_backward(g, x, weight, rho, wanted)
    return gx, gw.to(weight.dtype) if wanted else None, None


_rms_norm.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("ddx::rms_norm_dual", mutates_args=())
def _rms_norm_dual(x: Tensor, dx: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    rows, tangents, width = _rows(x), _rows(dx), x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dy = torch.empty(dx.shape, dtype=dx.dtype, device=x.device)
    options = DUAL.options(x.device)
    _rms_norm_dual_kernel.launch(
        (blocks(len(rows), options["ROWS"]),),
        x.device,
        options.joined(**_widths(width), WEIGHTED=weight is not None),
        rows,
        tangents,
        y if weight is None else weight.contiguous(),
        y,
        dy,
        len(rows),
        rows.stride(0),
        tangents.stride(0),
        eps,
    )
    return y, dy


@_rms_norm_dual.register_fake
def _(x: Tensor, dx: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), dx.new_empty(dx.shape)
