"""Truncated consistency models (Lee et al. 2024, arXiv:2410.14895): a second stage on the noisy times alone.

stage one   easy consistency tuning over all times, for the first `first_share` of the run; its end is kept as f_first
stage two   t >= t' only:   loss = d( f(x_t, t), stop-gradient g(x_r, r) ) / (t - r)         g = f_first where r < t'
            total = mean over t > t'  +  `boundary_loss_weight` * mean over rows at t = t'    g = f       where r >= t'

A share of the rows is at t' itself, whose r always lies below: they tie the second stage to what the first has
learned. The times below t' are trained no further: such a student draws well in one step, or in two with t' as the
second's time.

Times of stage two follow a log-Student-t distribution that is cut at t': half of a peak there, and a tail that is
nearly even in log(t) up to the noisiest time. Checked against github.com/NVlabs/TCM, commit b132239, training/loss.py,
which begins stage two from the average of stage one; here it begins from the weights themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import STUDENT, Batch, NetworkSpec
from ddx.methods.ect import ECT, ECTConfig
from ddx.methods.parts.config import above_zero, within
from ddx.methods.parts.consistency import level, same_dropout
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.time_sampling import Times, at_quantile, student_t_quantiles
from ddx.teachers.base import Teacher

FIRST = "first"


@dataclass(frozen=True, kw_only=True)
class TCMConfig(ECTConfig):
    """The published form. The paper's t' is 1 at data of standard deviation 0.5, a flow time of 2/3; here samplers'
    half.
    """

    first_share: float = option(0.6, "share of the run for the first stage")
    truncation_time: float = option(0.5, "t', the flow time where the second stage begins")
    second_times: str = option(
        "student-t",
        "times of the second stage: log-Student-t, or those of the first; both cut at t'",
        choices=("student-t", "first"),
    )
    second_time_mean: float | None = option(None, "mean of log(sigma / alpha) of its log-Student-t (none: at t')")
    second_time_std: float = option(0.2, "scale of its log-Student-t in log(sigma / alpha)")
    second_time_freedom: float = option(0.01, "degrees of freedom of its log-Student-t; small: a long tail")
    second_rate: float = option(0.5, "learning rate of the second stage, relative to the first")
    boundary_share: float = option(0.25, "share of rows at t' in the second stage")
    boundary_loss_weight: float = option(0.1, "weight of their mean loss, against the mean loss of the other rows")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "first_share")
        within(self, 0.0, 1.0, "truncation_time", "boundary_share", open_end=True)
        above_zero(self, "truncation_time", "boundary_share", "boundary_loss_weight")
        above_zero(self, "second_time_std", "second_time_freedom", "second_rate")


class TCM(ECT):
    """Truncated consistency models."""

    config: TCMConfig

    def __init__(self, config: TCMConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self._second_times: Tensor | None = None  # even quantiles of log(sigma / alpha)
        if config.second_times == "student-t":
            ends = torch.tensor([config.truncation_time, self.view.t_max], dtype=torch.float64)
            low, high = level(ends).log().tolist()
            mean = low if config.second_time_mean is None else config.second_time_mean
            self._second_times = student_t_quantiles(
                low, high, mean=mean, std=config.second_time_std, freedom=config.second_time_freedom
            ).to(teacher.device)
        even = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
        self._share_below = float((self.times_at(even) < config.truncation_time).double().mean())  # of the first times

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and what it was when the first stage ended."""
        return *super().networks(), NetworkSpec(name=FIRST, average_of=STUDENT, decay=1.0)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return where the second stage begins, and the stages of the first."""
        return ("first_share", *super().stretched(share))

    def renewed(self, step: int) -> tuple[str, ...]:
        """Return the snapshot at the end of the first stage."""
        return (FIRST,) if step == self._second_stage_begins else ()

    def learning_rate_factor(self, step: int) -> float:
        """Return `second_rate` in the second stage."""
        return self.config.second_rate if self._is_second(step) else 1.0

    @property
    def _second_stage_begins(self) -> int:
        return math.ceil(self.config.first_share * self.train_steps)

    def _is_second(self, step: int) -> bool:
        return step >= self._second_stage_begins

    def stage(self, batch: Batch) -> int:
        """Return the stage of the pairs' differences: all of them pass in the first stage of training."""
        if self._is_second(batch.step):
            return self.config.num_stages - 1
        return int(batch.step / self._second_stage_begins * self.config.num_stages)

    def draw_pair(self, batch: Batch) -> tuple[Times, Tensor, Tensor]:
        """Return the pairs of the first stage, or those of the second: some rows at t', all others above it."""
        times, t, r = super().draw_pair(batch)
        at_boundary = batch.random.uniform() < self.config.boundary_share
        if not self._is_second(batch.step):
            return times, t, r
        t = torch.where(at_boundary, self.config.truncation_time, self.second_times_at(times.quantile))
        return dataclasses.replace(times, t=t), t, self.earlier_time(t, batch)

    def second_times_at(self, quantile: Tensor) -> Tensor:
        """Return the flow times, float64, at quantiles in [0, 1) of the second stage's distribution: from t' on."""
        if self._second_times is not None:
            return torch.sigmoid(at_quantile(quantile, self._second_times))
        times = self.times_at(self._share_below + (1.0 - self._share_below) * quantile)
        return times.clamp(min=self.config.truncation_time)

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
        """Return the prediction at (x_r, r); in the second stage that of the first network where r is below t'."""
        if not self._is_second(batch.step):
            return super().target(networks, x_t, x_r, t, r, batch, guidance)
        with same_dropout(x_t.device):
            first = self.predict_x0(networks[FIRST], x_r, r, batch.condition, guidance)
        target = super().target(networks, x_t, x_r, t, r, batch, guidance)
        return torch.where(rows(r < self.config.truncation_time, x_r).bool(), first, target)

    def weight(self, t: Tensor, r: Tensor, batch: Batch) -> Tensor:
        """Return the weight of each pair, float64 `[B]`: means of the two kinds of rows become one mean over all."""
        weight = super().weight(t, r, batch)
        if not self._is_second(batch.step):
            return weight
        share = self.config.boundary_share
        at_boundary = t == self.config.truncation_time
        return weight * torch.where(at_boundary, self.config.boundary_loss_weight / share, 1.0 / (1.0 - share))
