"""Improved consistency training (Song & Dhariwal 2023, arXiv:2310.14189).

Against consistency training: no average as the target; a pseudo-Huber distance, c = 0.00054 sqrt(dimensions); times
log-normal in the noise level, (-1.1, 2) for data of standard deviation 0.5; the weight 1 / (level_t - level_r); and a
number of intervals that doubles at equal shares of the run, from 10 to 1280.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ddx.methods.parts.config import changed
from ddx.methods.parts.consistency import GridConfig, GridMethod


@dataclass(frozen=True, kw_only=True)
class ICTConfig(GridConfig):
    """The published form."""

    velocity_from: str = changed(GridConfig, "velocity_from", "data")
    time_sampling: str = changed(GridConfig, "time_sampling", "log-normal")
    time_mean: float = changed(GridConfig, "time_mean", -1.1 + math.log(2.0))
    time_std: float = changed(GridConfig, "time_std", 2.0)
    pair_weight: str = changed(GridConfig, "pair_weight", "level")
    grid_steps: int = changed(GridConfig, "grid_steps", 1280)
    grid_steps_start: int | None = changed(GridConfig, "grid_steps_start", 10)


class ICT(GridMethod):
    """Improved consistency training."""

    config: ICTConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "optimizer": "radam"}
    full_precision = True  # late pairs differ by less than bf16 tells apart, and the weight divides by it
