"""Consistency training (Song et al. 2023, arXiv:2303.01469, algorithm 3): the same picture and noise at two times.

x_r  = (1 - r) x0 + r eps                                                           no teacher but for its guidance
N(k) = ceil( sqrt( k/K ((s_1 + 1)^2 - s_0^2) + s_0^2 ) - 1 ) + 1                    N points of the grid, s_0 to s_1
m(k) = exp( s_0 log m_0 / N(k) )                                  the target's decay; m_0 = 0 is what iCT found best
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ddx.config import option
from ddx.methods.base import NetworkSpec
from ddx.methods.parts.config import changed
from ddx.methods.parts.consistency import GridConfig, GridMethod


@dataclass(frozen=True, kw_only=True)
class CTConfig(GridConfig):
    """The published curriculum for ImageNet, with the squared distance."""

    velocity_from: str = changed(GridConfig, "velocity_from", "data")
    loss: str = changed(GridConfig, "loss", "l2")
    target_decay: float = option(
        0.95,
        "decay of the target, an average of the student, at the start; grows with the grid. 0: no average",
    )
    grid_steps: int = changed(GridConfig, "grid_steps", 200)
    grid_steps_start: int | None = changed(GridConfig, "grid_steps_start", 2)


def ct_intervals(progress: float, start: int, final: int) -> int:
    """Return the number of intervals of the grid at this share of the run."""
    square = progress * ((final + 1) ** 2 - start**2) + start**2
    return min(max(math.ceil(math.sqrt(square) - 1.0), 1), final)


class CT(GridMethod):
    """Consistency training."""

    config: CTConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "optimizer": "radam"}

    def grid_steps_at(self, progress: float) -> int:
        """Return N at this share of the run."""
        start = self.config.grid_steps_start
        return self.config.grid_steps if start is None else ct_intervals(progress, start, self.config.grid_steps)

    def decay_at(self, spec: NetworkSpec, step: int) -> float:
        """Return m(k): one minus it falls as the reciprocal of the grid's points."""
        start = self.config.grid_steps_start
        if start is None:
            return spec.decay
        points = self.grid_steps_at(step / self.train_steps) + 1
        return float(spec.decay ** (start / points))
