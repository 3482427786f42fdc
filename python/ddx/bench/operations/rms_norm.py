"""RMSNorm of queries or keys, read in place from their packed projection, beside diffusers' own module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddx.bench.case import Case, Size, randn
from ddx.kernels.rms_norm import rms_norm, rms_norm_dual


def cases(size: Size) -> list[Case]:
    """Return forward, backward and dual."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        packed = randn(generator, size.batch, size.tokens, 3, size.width)
        return {"x": packed[:, :, 0], "weight": 1 + 0.1 * packed[0, 0, 1]}

    def make_dual(generator: torch.Generator) -> dict[str, Tensor]:
        return {**make(generator), "dx": randn(generator, size.batch, size.tokens, size.width)}

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-5)
        return y.to(weight.dtype) * weight

    shared: dict[str, Any] = {"operation": "rms_norm", "stock": stock}
    return [
        Case(mode="forward", make=make, ours=rms_norm, moved_elements=2 * size.activation, **shared),
        Case(
            mode="backward",
            make=make,
            ours=rms_norm,
            varied=("x", "weight"),
            moved_elements=3 * size.activation,
            **shared,
        ),
        Case(mode="dual", make=make_dual, ours=rms_norm_dual, moved_elements=4 * size.activation, **shared),
    ]
