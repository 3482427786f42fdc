"""The operations of :mod:`ddx.kernels.gated_residual_norm_modulate` with their tangents, without gradients.

    dr = dresidual + dgate branch + gate dbranch
    dy = dx^ (1 + scale) + x^ dscale + dshift,     dx^ = rho (dr - mean(dr) - x^ mean(x^ dr))

A tangent that is None is zero and is not read.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.gated_residual_norm_modulate import by_token, check, launches, name_of, promoted_dtype
from ddx.kernels.gated_residual_norm_modulate_kernels import (
    constants,
    load_row,
    load_vector,
    rounded,
    rows_of,
    store_row,
    vectors_of,
)
from ddx.kernels.launch import Kernel

DUAL = launches("_dual", {"WARP_COLUMNS": 512}, {"WARP_COLUMNS": 256}, {"WARP_COLUMNS": 128})


def gated_residual_dual_reference(
    residual: Tensor,
    branch: Tensor,
    gate: Tensor | None = None,
    dresidual: Tensor | None = None,
    dbranch: Tensor | None = None,
    dgate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual and its tangent in plain torch; see :func:`gated_residual_dual`."""
    dtype = promoted_dtype(residual, branch, gate)
    wide_gate = 1 if gate is None else by_token(_wide(gate))
    r = _wide(residual) + wide_gate * _wide(branch)
    dr = _wide(dresidual) + wide_gate * _wide(dbranch)
    dr = dr if dgate is None else dr + by_token(_wide(dgate)) * _wide(branch)
    return r.to(dtype), dr.expand_as(r).to(dtype)


def norm_modulate_dual_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    dx: Tensor | None = None,
    dscale: Tensor | None = None,
    dshift: Tensor | None = None,
    *,
    eps: float = 1e-6,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm and its tangent in plain torch; see :func:`norm_modulate_dual`."""
    dtype = norm_dtype or x.dtype
    centred = _wide(x) - _wide(x).mean(dim=-1, keepdim=True)
    rho = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    normalised = centred * rho
    dr = _wide(dx).expand_as(centred)
    dr = rho * (dr - dr.mean(dim=-1, keepdim=True) - normalised * (normalised * dr).mean(dim=-1, keepdim=True))
    y = normalised * (1 + by_token(_wide(scale))) + by_token(_wide(shift))
    dy = dr * (1 + by_token(_wide(scale)))
    dy = dy if dscale is None else dy + normalised * by_token(_wide(dscale))
    dy = dy if dshift is None else dy + by_token(_wide(dshift))
    return y.to(dtype), dy.to(dtype)


def gated_residual_norm_modulate_dual_reference(
    residual: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    dresidual: Tensor | None = None,
    dbranch: Tensor | None = None,
    dgate: Tensor | None = None,
    dscale: Tensor | None = None,
    dshift: Tensor | None = None,
    *,
    eps: float = 1e-6,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both and their tangents in plain torch; see :func:`gated_residual_norm_modulate_dual`."""
    r, dr = gated_residual_dual_reference(residual, branch, gate, dresidual, dbranch, dgate)
    y, dy = norm_modulate_dual_reference(r, scale, shift, dr, dscale, dshift, eps=eps, norm_dtype=norm_dtype)
    return r, y, dr, dy


def norm_modulate_dual(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    dx: Tensor | None = None,
    dscale: Tensor | None = None,
    dshift: Tensor | None = None,
    *,
    eps: float = 1e-6,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(The modulated norm of x, its tangent), both `[B, N, D]` in `norm_dtype`, by default x's; without gradients.

    Each tangent has the shape of its input. Raises ValueError for shapes that do not fit.
    """
    _check(x, None, None, scale, shift, dx, None, None, dscale, dshift)
    if not dispatch.use_triton(x, scale, shift, dx, dscale, dshift):
        return norm_modulate_dual_reference(x, scale, shift, dx, dscale, dshift, eps=eps, norm_dtype=norm_dtype)
    dtype = norm_dtype or x.dtype
    _, y, _, dy = _operation(x, None, None, scale, shift, dx, None, None, dscale, dshift, eps, dtype)
    return y, dy


def gated_residual_dual(
    residual: Tensor,
    branch: Tensor,
    gate: Tensor | None = None,
    dresidual: Tensor | None = None,
    dbranch: Tensor | None = None,
    dgate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(`gated_residual`, its tangent), both `[B, N, D]` in the dtype to which the inputs promote; without gradients.

    Each tangent has the shape of its input. Raises ValueError for shapes that do not fit.
    """
    _check(residual, branch, gate, None, None, dresidual, dbranch, dgate, None, None)
    if not dispatch.use_triton(residual, branch, gate, dresidual, dbranch, dgate):
        return gated_residual_dual_reference(residual, branch, gate, dresidual, dbranch, dgate)
    inputs = residual, branch, gate, None, None, dresidual, dbranch, dgate, None, None
    r, _, dr, _ = _operation(*inputs, 0.0, residual.dtype)
    return r, dr


def gated_residual_norm_modulate_dual(
    residual: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    dresidual: Tensor | None = None,
    dbranch: Tensor | None = None,
    dgate: Tensor | None = None,
    dscale: Tensor | None = None,
    dshift: Tensor | None = None,
    *,
    eps: float = 1e-6,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r, y) of `gated_residual_norm_modulate`, then their tangents (dr, dy) in the same dtypes; without gradients.

    Each tangent has the shape of its input. Raises ValueError for shapes that do not fit.
    """
    inputs = residual, branch, gate, scale, shift, dresidual, dbranch, dgate, dscale, dshift
    _check(*inputs)
    if not dispatch.use_triton(*inputs):
        return gated_residual_norm_modulate_dual_reference(*inputs, eps=eps, norm_dtype=norm_dtype)
    r, y, dr, dy = _operation(*inputs, eps, norm_dtype or promoted_dtype(residual, branch, gate))
    return r, y, dr, dy


def _check(residual: Tensor, *others: Tensor | None) -> None:
    branch, gate, scale, shift, *tangents = others
    check(residual, branch, gate, scale, shift)
    primals = {"residual": residual, "branch": branch, "gate": gate, "scale": scale, "shift": shift}
    for (name, primal), tangent in zip(primals.items(), tangents, strict=True):
        shape = None if primal is None else tuple(primal.shape)
        if tangent is not None and tuple(tangent.shape) != shape:
            raise ValueError(f"the tangent of {name} must be {shape} like {name}, got {tuple(tangent.shape)}")


def _wide(value: Tensor | None) -> Tensor:
    if value is None:
        return torch.zeros(())
    return value if value.dtype == torch.float64 else value.float()


@Kernel
def _dual_kernel(  # type: ignore[no-untyped-def]
    residual,
    branch,
    gate,
    scale,
    shift,
    dresidual,
    dbranch,
    dgate,
    dscale,
    dshift,
    r_ptr,
    y_ptr,
    dr_ptr,
    dy_ptr,
    N,
    eps,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """A row of one sample: r and dr where there is a branch, y and dy where there is a scale."""
    sample, row = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    here = sample * N + row
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    r0, r1 = load_row(residual, sample, row, head, tail, D)
    dr0, dr1 = tl.zeros([HEAD], tl.float32), tl.zeros([TAIL], tl.float32)
    if dresidual is not None:
        dr0, dr1 = load_row(dresidual, sample, row, head, tail, D)
    if branch is not None:
        gate0, gate1 = tl.full([HEAD], 1.0, tl.float32), tl.full([TAIL], 1.0, tl.float32)
        if gate is not None:
            gate0, gate1 = load_vector(gate, sample, head, tail, D)
        branch0, branch1 = load_row(branch, sample, row, head, tail, D)
        r0, r1 = rounded(r0 + gate0 * branch0, r_ptr), rounded(r1 + gate1 * branch1, r_ptr)
        if dbranch is not None:
            dbranch0, dbranch1 = load_row(dbranch, sample, row, head, tail, D)
            dr0, dr1 = dr0 + gate0 * dbranch0, dr1 + gate1 * dbranch1
        if dgate is not None:
            dgate0, dgate1 = load_vector(dgate, sample, head, tail, D)
            dr0, dr1 = dr0 + dgate0 * branch0, dr1 + dgate1 * branch1
        store_row(r_ptr, r0, r1, here, head, tail, D)
        store_row(dr_ptr, dr0, dr1, here, head, tail, D)
    if scale is not None:
        mean = (tl.sum(r0, axis=0) + tl.sum(r1, axis=0)) / D
        level = (tl.sum(dr0, axis=0) + tl.sum(dr1, axis=0)) / D
        r0, r1 = r0 - mean, tl.where(tail < D, r1 - mean, 0.0)
        dr0, dr1 = dr0 - level, dr1 - level  # not zero past the row's end, but r1 is
        rho = 1.0 / tl.sqrt((tl.sum(r0 * r0, axis=0) + tl.sum(r1 * r1, axis=0)) / D + eps)
        x0, x1 = r0 * rho, r1 * rho
        along = (tl.sum(x0 * dr0, axis=0) + tl.sum(x1 * dr1, axis=0)) / D
        dx0, dx1 = rho * (dr0 - x0 * along), rho * (dr1 - x1 * along)
        scale0, scale1 = load_vector(scale, sample, head, tail, D)
        shift0, shift1 = load_vector(shift, sample, head, tail, D)
        store_row(y_ptr, x0 * (1.0 + scale0) + shift0, x1 * (1.0 + scale1) + shift1, here, head, tail, D)
        dy0, dy1 = dx0 * (1.0 + scale0), dx1 * (1.0 + scale1)
        if dscale is not None:
            dscale0, dscale1 = load_vector(dscale, sample, head, tail, D)
            dy0, dy1 = dy0 + x0 * dscale0, dy1 + x1 * dscale1
        if dshift is not None:
            dshift0, dshift1 = load_vector(dshift, sample, head, tail, D)
            dy0, dy1 = dy0 + dshift0, dy1 + dshift1
        store_row(dy_ptr, dy0, dy1, here, head, tail, D)


def _outputs(
    residual: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, norm_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r, y, dr, dy), not yet written; those that nobody asked for are `[0]`."""
    r_shape = (0,) if branch is None else residual.shape
    y_shape = (0,) if scale is None else residual.shape
    dtype, device = promoted_dtype(residual, branch, gate), residual.device
    r, dr = (torch.empty(r_shape, dtype=dtype, device=device) for _ in range(2))
    y, dy = (torch.empty(y_shape, dtype=norm_dtype, device=device) for _ in range(2))
    return r, y, dr, dy


@torch.library.custom_op("ddx::gated_residual_norm_modulate_dual", mutates_args=())
def _operation(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    dresidual: Tensor | None,
    dbranch: Tensor | None,
    dgate: Tensor | None,
    dscale: Tensor | None,
    dshift: Tensor | None,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r, y, dr, dy = _outputs(residual, branch, gate, scale, norm_dtype)
    batch, tokens, width = residual.shape
    options = DUAL[name_of(branch, scale)].options(residual.device)
    _dual_kernel.launch(
        (tokens, batch),
        residual.device,
        constants(options, width),
        rows_of(residual),
        rows_of(branch),
        vectors_of(gate),
        vectors_of(scale),
        vectors_of(shift),
        rows_of(dresidual),
        rows_of(dbranch),
        vectors_of(dgate),
        vectors_of(dscale),
        vectors_of(dshift),
        r,
        y,
        dr,
        dy,
        tokens,
        eps,
    )
    return r, y, dr, dy


@_operation.register_fake
def _(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    dresidual: Tensor | None,
    dbranch: Tensor | None,
    dgate: Tensor | None,
    dscale: Tensor | None,
    dshift: Tensor | None,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(residual, branch, gate, scale, norm_dtype)
