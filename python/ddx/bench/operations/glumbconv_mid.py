"""SiLU, depthwise 3x3 convolution and GLU of SANA's feed-forward, beside what diffusers' GLUMBConv runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.bench.case import Case, Size, randn
from ddx.kernels.glumbconv_mid import glumbconv_mid, glumbconv_mid_dual


def cases(size: Size) -> list[Case]:
    """Return forward; backward, also with frozen weights; and dual."""
    half = int(size.mlp_ratio * size.width)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "x": randn(generator, size.batch, size.side, size.side, 2 * half),
            "weight": randn(generator, 2 * half, 1, 3, 3) / 3,
            "bias": 0.1 * randn(generator, 2 * half),
        }

    def make_dual(generator: torch.Generator) -> dict[str, Tensor]:
        given = make(generator)
        return {**given, "dx": randn(generator, *given["x"].shape)}

    def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # The block hands `[B, C, H, W]` views of `[B, N, C]` to conv_inverted, whose output then is channels_last too:
        # eager works on this very view, and its convolution answers in channels_last.
        hidden = F.conv2d(F.silu(x.permute(0, 3, 1, 2)), weight, bias, padding=1, groups=len(weight))
        value, gate = torch.chunk(hidden, 2, dim=1)
        return (value * F.silu(gate)).permute(0, 2, 3, 1)

    elements = size.batch * size.tokens * half
    shared: dict[str, Any] = {"stock": stock, "make": make, "ours": glumbconv_mid}
    return [
        Case(operation="glumbconv_mid", mode="forward", moved_elements=3 * elements, **shared),
        Case(
            operation="glumbconv_mid",
            mode="backward",
            varied=("x", "weight", "bias"),
            moved_elements=5 * elements,
            **shared,
        ),
        Case(operation="glumbconv_mid frozen", mode="backward", moved_elements=5 * elements, **shared),
        Case(
            operation="glumbconv_mid",
            mode="dual",
            moved_elements=6 * elements,
            **{**shared, "make": make_dual, "ours": glumbconv_mid_dual},
        ),
    ]
