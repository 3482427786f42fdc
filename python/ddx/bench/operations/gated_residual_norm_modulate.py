"""What stands between the projections of a SANA block, as diffusers' `SanaTransformerBlock.forward` writes it.

The modulation is cut from one `[B, 6, D]` tensor. SANA gates the self-attention and the feed-forward, and the
norm follows the cross-attention, which it does not gate: `residual_norm_modulate`; a block without cross-attention
gates, adds and normalises at once. A block begins with a norm alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.bench.case import Case, Size, randn
from ddx.kernels.gated_residual_norm_modulate import gated_residual, gated_residual_norm_modulate
from ddx.kernels.gated_residual_norm_modulate_dual import (
    gated_residual_dual,
    gated_residual_norm_modulate_dual,
    norm_modulate_dual,
)


def stock_norm_modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Diffusers' norm and modulation."""
    return (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift).to(x.dtype)


def stock_gated_residual(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """Diffusers' gate and residual."""
    return residual + gate * branch


def stock_residual_norm_modulate(
    residual: Tensor, branch: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Diffusers' residual of the cross-attention, and the norm after it."""
    r = branch + residual
    return r, stock_norm_modulate(r, scale, shift)


def stock_gated_residual_norm_modulate(
    residual: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Diffusers' block without a cross-attention."""
    r = stock_gated_residual(residual, branch, gate)
    return r, stock_norm_modulate(r, scale, shift)


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The fused operation without a branch, as a block begins; the residual that it hands on costs nothing."""
    return gated_residual_norm_modulate(x, None, None, scale, shift)[1]


def residual_norm_modulate(residual: Tensor, branch: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The fused operation without a gate."""
    return gated_residual_norm_modulate(residual, branch, None, scale, shift)


def residual_norm_modulate_dual(
    residual: Tensor, branch: Tensor, scale: Tensor, shift: Tensor, **tangents: Any
) -> tuple[Tensor, ...]:
    """The fused operation and its tangent without a gate."""
    return gated_residual_norm_modulate_dual(residual, branch, None, scale, shift, **tangents)


def cases(size: Size) -> list[Case]:
    """Return forward, backward and dual of each; a backward pass hands the gradient of a residual on as it is."""
    sum_, gated, norm = ("residual", "branch"), ("gate",), ("scale", "shift")
    return [
        *_modes(size, "norm_modulate", ("x", *norm), norm_modulate, norm_modulate_dual, stock_norm_modulate, (2, 3, 4)),
        *_modes(
            size,
            "gated_residual",
            (*sum_, *gated),
            gated_residual,
            gated_residual_dual,
            stock_gated_residual,
            (3, 3, 6),
        ),
        *_modes(
            size,
            "residual_norm_modulate",
            (*sum_, *norm),
            residual_norm_modulate,
            residual_norm_modulate_dual,
            stock_residual_norm_modulate,
            (4, 4, 8),
        ),
        *_modes(
            size,
            "gated_residual_norm_modulate",
            (*sum_, *gated, *norm),
            gated_residual_norm_modulate,
            gated_residual_norm_modulate_dual,
            stock_gated_residual_norm_modulate,
            (4, 6, 8),
        ),
    ]


def _modes(
    size: Size,
    operation: str,
    names: tuple[str, ...],
    ours: Callable[..., Any],
    ours_dual: Callable[..., Any],
    stock: Callable[..., Any],
    passes: tuple[int, int, int],
) -> list[Case]:
    """Return the three modes; `passes` are the activations that each must read and write."""
    tangents = tuple("d" + name for name in names)
    shared: dict[str, Any] = {"operation": operation, "stock": stock, "varied": names}
    forward, backward, dual = (count * size.activation for count in passes)
    return [
        Case(mode="forward", make=_inputs(size, names), ours=ours, moved_elements=forward, **shared),
        Case(mode="backward", make=_inputs(size, names), ours=ours, moved_elements=backward, **shared),
        Case(mode="dual", make=_inputs(size, names + tangents), ours=ours_dual, moved_elements=dual, **shared),
    ]


def _inputs(size: Size, names: tuple[str, ...]) -> Callable[[torch.Generator], dict[str, Tensor]]:
    def make(generator: torch.Generator) -> dict[str, Tensor]:
        modulation = randn(generator, size.batch, len(names), size.width)
        activation = size.batch, size.tokens, size.width
        return {
            name: part if name.endswith(("gate", "scale", "shift")) else randn(generator, *activation)
            for name, part in zip(names, modulation.chunk(len(names), dim=1), strict=True)
        }

    return make
