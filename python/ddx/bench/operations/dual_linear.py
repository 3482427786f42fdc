"""The projection to queries, keys and values with its tangent, beside func.jvp; and as one product over both."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.bench.case import Case, Size, randn
from ddx.kernels.dual_linear import dual_linear


def cases(size: Size) -> list[Case]:
    """Return dual: as it is, and as "dual_linear cat"."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        weight = randn(generator, 3 * size.width, size.width) * size.width**-0.5
        tokens = (size.batch, size.tokens, size.width)
        return {"x": randn(generator, *tokens), "dx": randn(generator, *tokens), "weight": weight}

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def concatenated(x: Tensor, dx: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return F.linear(torch.cat([x, dx]), weight).chunk(2)

    shared: dict[str, Any] = {
        "mode": "dual",
        "make": make,
        "stock": stock,
        "moved_elements": 2 * size.activation + 2 * 3 * size.activation + 3 * size.width**2,
        "flops": 2 * 2 * 3 * size.activation * size.width,
    }
    return [
        Case(operation="dual_linear", ours=dual_linear, **shared),
        Case(operation="dual_linear cat", ours=concatenated, **shared),
    ]
