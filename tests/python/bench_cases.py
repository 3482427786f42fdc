"""A case that tests of the measurements can break: y = tanh(w x)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddx.bench.case import Case, Mode


def stock(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x * w)


def dual(x: Tensor, dx: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.tanh(x * w)
    return y, (1 - y * y) * w * dx


def tanh_case(mode: Mode = "forward", ours: Callable[..., Any] | None = None) -> Case:
    """Ours is right unless another function is given."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        drawn = {"x": torch.randn(8, 16, generator=generator), "w": torch.randn(16, generator=generator)}
        return drawn | ({"dx": torch.randn(8, 16, generator=generator)} if mode == "dual" else {})

    return Case(
        operation="tanh",
        mode=mode,
        make=make,
        ours=ours or (dual if mode == "dual" else stock),
        stock=stock,
        varied=("x", "w") if mode == "backward" else ("x",),
        moved_elements=256,
    )
