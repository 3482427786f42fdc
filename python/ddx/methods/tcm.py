"""Truncated consistency models (Lee et al. 2024, arXiv:2410.14895): a second stage on the noisy times alone.

stage one   easy consistency tuning over all times, for the first `first_share` of the run; its end is kept as f_first
stage two   t >= t' only:    d( f(x_t, t), stop-gradient f(x_r, r) ) / (t - r)    with r = max(t', t (1 - q^-n ...))
            at t = t':       d( f(x_t', t'), f_first(x_t', t') ) times `boundary_weight`

All of the network then serves the noisy times, and the boundary ties it to what the first stage has learned there. The
times below t' are trained no further: such a student draws well in one step, or in two with t' as the second's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import STUDENT, Batch, NetworkSpec
from ddx.methods.ect import ECT, ECTConfig
from ddx.methods.parts.config import above_zero, within
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.time_sampling import Times, sample_times
from ddx.teachers.base import Teacher

FIRST = "first"


@dataclass(frozen=True, kw_only=True)
class TCMConfig(ECTConfig):
    """Two stages. The paper's t' is 1 at data of standard deviation 0.5, a flow time of 2/3; here samplers' half."""

    first_share: float = option(0.6, "share of the run for the first stage")
    truncation_time: float = option(0.5, "t', the flow time where the second stage begins")
    boundary_share: float = option(0.25, "share of rows at t' in the second stage")
    boundary_weight: float = option(0.1, "weight of the boundary loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "first_share")
        within(self, 0.0, 1.0, "truncation_time", "boundary_share", open_end=True)
        above_zero(self, "boundary_weight")


class TCM(ECT):
    """Truncated consistency models."""

    config: TCMConfig

    def __init__(self, config: TCMConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        even = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
        times = sample_times(even, config, t_min=self.view.t_min, t_max=self.view.t_max)
        self._share_below = float((times < config.truncation_time).double().mean())  # of the drawn times

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and what it was when the first stage ended."""
        return *super().networks(), NetworkSpec(name=FIRST, average_of=STUDENT, decay=1.0)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return where the second stage begins, and the stages of the first."""
        return ("first_share", *super().stretched(share))

    def renewed(self, step: int) -> tuple[str, ...]:
        """Return the snapshot at the end of the first stage."""
        return (FIRST,) if step == self._second_stage_begins else ()

    @property
    def _second_stage_begins(self) -> int:
        return math.ceil(self.config.first_share * self.train_steps)

    def stage(self, batch: Batch) -> int:
        """Return the stage of the pairs' differences: all of them pass in the first stage of training."""
        if batch.step >= self._second_stage_begins:
            return self.config.num_stages - 1
        return int(batch.step / self._second_stage_begins * self.config.num_stages)

    def draw_pair(self, batch: Batch) -> tuple[Times, Tensor, Tensor]:
        """Return the pairs of the first stage, or those of the second; there rows at t' have both times there."""
        first = super().draw_pair(batch)
        at_boundary = batch.random.uniform() < self.config.boundary_share
        if batch.step < self._second_stage_begins:
            return first
        times, least = first[0], self.config.truncation_time
        quantile = self._share_below + (1.0 - self._share_below) * times.quantile
        t = sample_times(quantile, self.config, t_min=self.view.t_min, t_max=self.view.t_max).clamp(min=least)
        t = torch.where(at_boundary, least, t)
        return times, t, self.earlier_time(t, batch).clamp(min=least)

    def target(
        self,
        networks: Mapping[str, nn.Module],
        x_t: Tensor,
        x_r: Tensor,
        t: Tensor,
        r: Tensor,
        batch: Batch,
        guidance: Tensor | float,
    ) -> Tensor:
        """Return the prediction at (x_r, r); at the boundary that of the first stage."""
        target = super().target(networks, x_t, x_r, t, r, batch, guidance)
        if batch.step < self._second_stage_begins:
            return target
        kept = self.predict_x0(networks[FIRST], x_t, t, batch.condition, guidance)
        return torch.where(rows(t == r, x_t).bool(), kept, target)

    def weight(self, t: Tensor, r: Tensor) -> Tensor:
        """Return the weight of each pair, float64 `[B]`."""
        return torch.where(t == r, self.config.boundary_weight, super().weight(t, r))
