"""Easy consistency tuning (Geng et al. 2024, arXiv:2406.14548): the earlier time comes closer in stages.

r    = max(0, t (1 - q^-(stage + 1) (1 + 8 sigmoid(-t / 2))))  t, r noise levels; at stage 0 nearly a diffusion model
loss = d( f(x_t, t), stop-gradient f(x_r, r) ) / (t - r)       the same noise, and the same dropout, at both times

The paper's sigmoid is of -t, where data have a standard deviation of 0.5, and levels are half of those here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.base import Batch
from ddx.methods.parts.config import at_least, changed
from ddx.methods.parts.consistency import ConsistencyConfig, ConsistencyMethod, level
from ddx.methods.parts.time_sampling import Times


@dataclass(frozen=True, kw_only=True)
class ECTConfig(ConsistencyConfig):
    """The published form; its log-normal (-1.1, 2) is for data of standard deviation 0.5."""

    velocity_from: str = changed(ConsistencyConfig, "velocity_from", "data")
    time_sampling: str = changed(ConsistencyConfig, "time_sampling", "log-normal")
    time_mean: float = changed(ConsistencyConfig, "time_mean", -1.1 + math.log(2.0))
    time_std: float = changed(ConsistencyConfig, "time_std", 2.0)
    pair_weight: str = changed(ConsistencyConfig, "pair_weight", "level")
    stage_ratio: float = option(2.0, "factor q by which the pair's difference shrinks in each stage")
    num_stages: int = option(8, "number of stages, all of equal length")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "num_stages")
        if not self.stage_ratio > 1.0:
            raise UsageError(
                f"stage_ratio = {self.stage_ratio} must be above 1", hint="--stage-ratio 2: halve the difference"
            )


def earlier_level(t: Tensor, stage: int, ratio: float) -> Tensor:
    """Return the noise level r of a pair for the level t, float64."""
    return (t * (1.0 - ratio ** -(stage + 1) * (1.0 + 8.0 * torch.sigmoid(-0.5 * t)))).clamp(min=0.0)


class ECT(ConsistencyMethod):
    """Easy consistency tuning: pairs of times whose difference is a share of the later one."""

    config: ECTConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "optimizer": "radam"}
    full_precision = True  # late pairs differ by less than bf16 tells apart, and the weight divides by it

    def stage(self, batch: Batch) -> int:
        """Return the stage, from 0."""
        return min(int(batch.progress * self.config.num_stages), self.config.num_stages - 1)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the stages, if there are several."""
        return ("num_stages",) if self.config.num_stages > 1 else ()

    def draw_pair(self, batch: Batch) -> tuple[Times, Tensor, Tensor]:
        """Return the drawn times, and those that the stage pairs them with."""
        times = self.draw_times(batch)
        return times, times.t, self.earlier_time(times.t, batch)

    def earlier_time(self, t: Tensor, batch: Batch) -> Tensor:
        """Return the flow time r that the stage pairs with t, float64 `[B]`; 0 below the teacher's cleanest."""
        earlier = earlier_level(level(t), self.stage(batch), self.config.stage_ratio)
        r = earlier / (1.0 + earlier)
        return torch.where(r < self.view.t_min, 0.0, r)
