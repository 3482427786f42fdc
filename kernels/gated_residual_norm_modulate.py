"""Residual, gate, LayerNorm and modulation of a transformer block: forward and backward.

    r = residual + gate branch
    y = x^ (1 + scale) + shift,     x^ = (r - mean(r)) rho,   rho = 1 / sqrt(mean((r - mean(r))**2) + eps)

    w = gy (1 + scale);   d_residual = gr + rho (w - mean(w) - x^ mean(w x^));   d_branch = gate d_residual
    d_gate = sum d_residual branch;   d_scale = sum gy x^;   d_shift = sum gy        (sums over a sample's tokens)

LayerNorm: Ba et al. 2016, without weights; its modulation: adaLN-single (Chen et al. 2023, PixArt-alpha). Arithmetic is
float32, a row's variance is that of centred values. The backward pass makes x^ again from r, which whatever follows
keeps anyhow, so two numbers a row are kept besides, and the branch where its gate is trained. Sums over tokens are
added in two stages in a fixed order: repeated runs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.gated_residual_norm_modulate_kernels import (
    backward_kernel,
    constants,
    forward_kernel,
    rows_of,
    vectors_of,
)
from ddx.kernels.launch import Launch, Options, blocks


def launches(suffix: str, *options: Options) -> dict[str, Launch]:
    """Return a launch for each operation, its default first; they share kernels, not what is best for them."""
    names = ("norm_modulate", "gated_residual", "gated_residual_norm_modulate")
    return {name: Launch(name + suffix, default=options[0], candidates=options[1:]) for name in names}


FORWARD = launches(
    "",
    {"ROWS": 2, "WARP_COLUMNS": 512},
    {"ROWS": 1, "WARP_COLUMNS": 512},
    {"ROWS": 4, "WARP_COLUMNS": 512},
    {"ROWS": 2, "WARP_COLUMNS": 256},
    {"ROWS": 4, "WARP_COLUMNS": 1024},
)
# PROGRAMS are launched in all, each with one run of rows: fewer leave less to the second stage of the sums.
BACKWARD = launches(
    "_backward",
    {"PROGRAMS": 512, "STAGES": 2, "WARP_COLUMNS": 512},
    {"PROGRAMS": 512, "STAGES": 1, "WARP_COLUMNS": 256},
    {"PROGRAMS": 1024, "STAGES": 1, "WARP_COLUMNS": 512},
    {"PROGRAMS": 1024, "STAGES": 1, "WARP_COLUMNS": 256},
    {"PROGRAMS": 256, "STAGES": 3, "WARP_COLUMNS": 512},
)


def gated_residual_reference(residual: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
    """The residual in plain torch; see :func:`gated_residual`."""
    return residual + (branch if gate is None else by_token(gate) * branch)


def norm_modulate_reference(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float = 1e-6, norm_dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm of x, times 1 + scale, plus shift, as diffusers writes it: in `norm_dtype`, by default x's."""
    y = F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + by_token(scale)) + by_token(shift)
    return y.to(norm_dtype or x.dtype)


def gated_residual_norm_modulate_reference(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float = 1e-6,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Both in plain torch; see :func:`gated_residual_norm_modulate`."""
    r = residual if branch is None else gated_residual_reference(residual, branch, gate)
    return r, norm_modulate_reference(r, scale, shift, eps=eps, norm_dtype=norm_dtype)


def gated_residual(residual: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
    """residual + gate * branch, `[B, N, D]` in the dtype to which they promote; differentiable by all three.

    residual, branch: `[B, N, D]`; gate: `[B, D]` or `[B, 1, D]`, slices are read in place, or None for 1. Raises
    ValueError for shapes that do not fit.
    """
    check(residual, branch, gate)
    if not dispatch.use_triton(residual, branch, gate):
        return gated_residual_reference(residual, branch, gate)
    r: Tensor = _operation(residual, branch, gate, None, None, 0.0, residual.dtype)[0]
    return r


def gated_residual_norm_modulate(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float = 1e-6,
    norm_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(r of :func:`gated_residual`, LayerNorm of r times 1 + scale plus shift), in one pass forward and one backward.

    Both are `[B, N, D]`, the norm in `norm_dtype`, by default r's. scale, shift: `[B, D]` or `[B, 1, D]`, slices are
    read in place. Without a branch, r is the residual itself: go on with this r, and the gradient that comes back to it
    is added where that of y is made, not in a pass of its own. Shapes, dtypes and errors are else those of
    :func:`gated_residual`; differentiable by all tensors.
    """
    check(residual, branch, gate, scale, shift)
    if not dispatch.use_triton(residual, branch, gate, scale, shift):
        return gated_residual_norm_modulate_reference(
            residual, branch, gate, scale, shift, eps=eps, norm_dtype=norm_dtype
        )
    operation = _operation if branch is not None else _BesideResidual.apply
    dtype = norm_dtype or promoted_dtype(residual, branch, gate)
    r, y, _, _ = operation(residual, branch, gate, scale, shift, eps, dtype)
    return r, y


def check(residual: Tensor, branch: Tensor | None, gate: Tensor | None, *modulation: Tensor | None) -> None:
    """Raise ValueError for shapes that do not fit."""
    if residual.ndim != 3 or residual.numel() == 0:
        raise ValueError(f"the residual must be [B, N, D] and not empty, got {tuple(residual.shape)}")
    if branch is None and gate is not None:
        raise ValueError("a gate needs a branch")
    if branch is not None and branch.shape != residual.shape:
        raise ValueError(f"the branch must be {tuple(residual.shape)} like the residual, got {tuple(branch.shape)}")
    batch, _, width = residual.shape
    for name, value in zip(("gate", "scale", "shift"), (gate, *modulation), strict=False):
        if value is not None and value.shape not in ((batch, width), (batch, 1, width)):
            raise ValueError(f"{name} must be [{batch}, {width}] or [{batch}, 1, {width}], got {tuple(value.shape)}")


def by_token(value: Tensor) -> Tensor:
    """Return a gate, scale or shift as `[B, 1, D]`."""
    return value if value.ndim == 3 else value[:, None]


def promoted_dtype(residual: Tensor, *others: Tensor | None) -> torch.dtype:
    """Return the dtype that plain torch gives a sum of these."""
    dtype = residual.dtype
    for other in others:
        dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    return dtype


def _outputs(
    residual: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor | None, norm_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r, y, mean `[B, N]`, rho `[B, N]`), not yet written; those that nobody asked for are `[0]`."""
    device = residual.device
    r_shape = (0,) if branch is None else residual.shape
    y_shape = (0,) if scale is None else residual.shape
    return (
        torch.empty(r_shape, dtype=promoted_dtype(residual, branch, gate), device=device),
        torch.empty(y_shape, dtype=norm_dtype, device=device),
        torch.empty(y_shape[:2], dtype=torch.float32, device=device),
        torch.empty(y_shape[:2], dtype=torch.float32, device=device),
    )


def name_of(branch: Tensor | None, scale: Tensor | None) -> str:
    """Return the operation that has these."""
    if branch is None:
        return "norm_modulate"
    return "gated_residual" if scale is None else "gated_residual_norm_modulate"


@torch.library.custom_op("ddx::gated_residual_norm_modulate", mutates_args=())
def _operation(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r, y, mean, rho) as :func:`_outputs` has them."""
    r, y, mean, rho = _outputs(residual, branch, gate, scale, norm_dtype)
    batch, tokens, width = residual.shape
    options = FORWARD[name_of(branch, scale)].options(residual.device)
    forward_kernel.launch(
        (blocks(tokens, options["ROWS"]), batch),
        residual.device,
        constants(options, width),
        rows_of(residual),
        rows_of(branch),
        vectors_of(gate),
        vectors_of(scale),
        vectors_of(shift),
        r,
        y,
        mean,
        rho,
        tokens,
        eps,
    )
    return r, y, mean, rho


@_operation.register_fake
def _(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(residual, branch, gate, scale, norm_dtype)


def _gradient_outputs(
    gr: Tensor | None, gy: Tensor | None, residual_dtype: torch.dtype, branch_dtype: torch.dtype | None, planes: int
) -> tuple[Tensor, Tensor, Tensor]:
    given = gr if gy is None else gy
    assert given is not None, "a backward pass has a gradient to begin with"
    shape, device = given.shape, given.device
    return (
        torch.empty((0,) if gy is None else shape, dtype=residual_dtype, device=device),
        torch.empty((0,) if branch_dtype is None else shape, dtype=branch_dtype or residual_dtype, device=device),
        torch.empty((shape[0], planes, shape[2]), dtype=torch.float32, device=device),
    )


@torch.library.custom_op("ddx::gated_residual_norm_modulate_backward", mutates_args=())
def gradients(
    gr: Tensor | None,
    gy: Tensor | None,
    r: Tensor | None,
    mean: Tensor | None,
    rho: Tensor | None,
    scale: Tensor | None,
    branch: Tensor | None,
    gate: Tensor | None,
    residual_dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    modulation_sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the residual, gradient of the branch, sums float32 `[B, planes, D]`).

    The first is `[0]` without gy, being gr then; the second is `[0]` without a `branch_dtype`. The planes are shift and
    scale if `modulation_sums`, then the gate if a branch is given.
    """
    planes = 2 * modulation_sums + (branch is not None)
    d_residual, d_branch, sums = _gradient_outputs(gr, gy, residual_dtype, branch_dtype, planes)
    batch, tokens, width = (d_branch if gy is None else d_residual).shape
    name = "gated_residual" if gy is None else "norm_modulate" if gate is None else "gated_residual_norm_modulate"
    options = BACKWARD[name].options(sums.device)
    rows = blocks(tokens, max(options["PROGRAMS"] // batch, 1))
    programs = blocks(tokens, rows)
    partial = torch.empty((batch, programs, planes, width), dtype=torch.float32, device=sums.device)
    backward_kernel.launch(
        (programs, batch),
        sums.device,
        constants(options, width).joined(MODULATION_SUMS=modulation_sums, GATE_SUM=branch is not None),
        rows_of(gr),
        rows_of(gy),
        rows_of(r),
        rows_of(branch),
        vectors_of(gate),
        vectors_of(scale),
        mean,
        rho,
        d_residual,
        None if branch_dtype is None else d_branch,
        partial,
        tokens,
        rows,
    )
    return d_residual, d_branch, torch.sum(partial, dim=1, out=sums)


@gradients.register_fake
def _(
    gr: Tensor | None,
    gy: Tensor | None,
    r: Tensor | None,
    mean: Tensor | None,
    rho: Tensor | None,
    scale: Tensor | None,
    branch: Tensor | None,
    gate: Tensor | None,
    residual_dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    modulation_sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    planes = 2 * modulation_sums + (branch is not None)
    return _gradient_outputs(gr, gy, residual_dtype, branch_dtype, planes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    residual, branch, gate, scale, *_ = inputs
    r, _, mean, rho = output
    normed = (residual if branch is None else r, mean, rho, scale) if scale is not None else (None,) * 4
    ctx.save_for_backward(*normed, branch if gate is not None and ctx.needs_input_grad[2] else None, gate)
    ctx.forms = [None if value is None else (value.dtype, value.ndim) for value in inputs[:5]]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gr: Tensor | None, gy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *normed, branch, gate = ctx.saved_tensors
    residual_dtype, branch_dtype = (None if form is None else form[0] for form in ctx.forms[:2])
    if gate is None and (gy is None or branch_dtype == residual_dtype):
        branch_dtype = None  # the gradient of the residual serves for both
    modulation_sums = gy is not None and (ctx.needs_input_grad[3] or ctx.needs_input_grad[4])
    d_residual, d_branch = gr, gr
    planes: tuple[Tensor, ...] = ()
    if gy is not None or gate is not None:
        normed = normed if gy is not None else [None] * 4
        from_norm, d_branch, sums = gradients(
            gr, gy, *normed, branch, gate, residual_dtype, branch_dtype, modulation_sums
        )
        d_residual, planes = gr if gy is None else from_norm, sums.unbind(dim=1)
    d_branch = d_residual if branch_dtype is None else d_branch
    d_gate = None if branch is None else planes[-1]
    d_shift, d_scale = planes[:2] if modulation_sums else (None, None)
    found = zip((d_residual, d_branch, d_gate, d_scale, d_shift), ctx.forms, strict=True)
    return *(_in_form(gradient, form) for gradient, form in found), None, None


def _in_form(gradient: Tensor | None, form: tuple[torch.dtype, int] | None) -> Tensor | None:
    """Return a gradient in its input's dtype; sums `[B, D]` also as `[B, 1, D]`."""
    if gradient is None or form is None:
        return None
    dtype, ndim = form
    return (gradient if gradient.ndim == ndim else gradient[:, None]).to(dtype)


_operation.register_autograd(_backward, setup_context=_save)


class _BesideResidual(torch.autograd.Function):
    """The operation without a branch, with r: an operation's output may not be its input, a Function's may."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        residual = inputs[0]
        return residual.view_as(residual), *_operation(*inputs)[1:]

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)
