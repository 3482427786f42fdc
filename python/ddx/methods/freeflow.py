"""FreeFlow (Tong et al. 2025, arXiv:2511.19428): a flow map from noise alone, held to the teacher on its way.

x_r = x_t - (t - r) F(x_t, t, r);   moving with the teacher, dx_r/dr = v(x_r, r), means  F = v(x_r, r) + (t - r) dF/dr
map:         | F - sg(v(x_r, r) + (t - r) dF/dr) |^2        x_r: where the student itself jumps to
correction:  on a quarter of the rows, x_0 moves along the difference of two scores, the teacher's and a fake one's

Only captions are needed: jumps start at noise. The published map starts nowhere else and draws in one step; here a
share of the rows starts midway, at what the student jumps to, so that several steps are trained too. The correction
undoes the errors that add up along a map, and its gradient's norm is kept at a ratio to the map's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.kernels.dmd import guarded_dmd_loss
from ddx.methods.base import FAKE, STUDENT, Batch, Losses, NetworkSpec, Turn, bare
from ddx.methods.parts.config import FlowConfig, above_zero, within
from ddx.methods.parts.flow_map import FlowMap, guidance_of, take
from ddx.methods.parts.flow_view import clean, mean_square, rows


@dataclass(frozen=True, kw_only=True)
class FreeFlowConfig(FlowConfig):
    """The published form, with jumps from midway added."""

    correction_share: float = option(0.25, "share of rows that the fake score corrects")
    midway_share: float = option(0.25, "share of the other rows that start midway; 0: the student draws in one step")
    fake_rate: float = option(1.0, "learning rate of the fake score, relative to the student's")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "correction_share", "midway_share")
        above_zero(self, "fake_rate")


class FreeFlow(FlowMap):
    """FreeFlow."""

    config: FreeFlowConfig
    guided_networks = (STUDENT, FAKE)
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "loss_balance": "norm", "balance_ratio": 1.0}

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student and the fake score."""
        return NetworkSpec(name=STUDENT), NetworkSpec(name=FAKE, learning_rate_scale=self.config.fake_rate)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the fake score's update, and then the student's."""
        return Turn(trains=(FAKE,)), Turn(trains=(STUDENT,))

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the fake score's denoising loss, or the student's map loss and, as its second, the correction."""
        return self.fake_losses(batch, networks) if FAKE in turn.trains else self.student_losses(batch, networks)

    def fake_losses(self, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the squared error of the fake score on what the student draws in one step."""
        guidance, times = self.draw_guidance(batch), self.draw_times(batch)
        start, fresh = self.view.start(self.draw_noise(batch), self.view.t_max), self.draw_noise(batch)
        top = torch.full_like(times.t, self.view.t_max)
        with torch.no_grad():
            velocity = self.average_velocity(networks[STUDENT], start, top, 0.0 * top, batch.condition, guidance)
            own = start - rows(top, start) * velocity
        predicted = self.velocity(networks[FAKE], self.noisy(own, fresh, times.t), times.t, batch.condition, guidance)
        loss, dropped = guarded_consistency_loss(predicted, fresh - own, c=None)
        return Losses(by_network={FAKE: times.weigh(loss)}, dropped={FAKE: dropped})

    def student_losses(self, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the map loss of the rows that are not corrected, and the correction of the others."""
        student, still = networks[STUDENT], bare(networks[STUDENT])
        guidance, times = self.draw_guidance(batch), self.draw_times(batch)
        x, fresh = self.view.start(self.draw_noise(batch), self.view.t_max), self.draw_noise(batch)
        u, corrected_t = batch.random.uniform(), self.draw_times(batch)
        corrected, midway, rest = batch.random.pick(
            self.config.correction_share, (1.0 - self.config.correction_share) * self.config.midway_share
        )
        top = torch.full_like(times.t, self.view.t_max)
        t = top.clone()
        t[midway] = (u * top)[midway].clamp(min=self.view.t_min)
        if len(part := self.rows_to_pass(midway)):
            with torch.no_grad():
                s = guidance_of(guidance, part)
                condition = batch.condition.index(part)
                velocity = self.average_velocity(still, x[part], top[part], t[part], condition, s)[: len(midway)]
                x[midway] -= rows((top - t)[midway], velocity) * velocity
        r = (times.t * t / top).index_fill(0, corrected, 0.0)
        prediction = self.average_velocity(student, x, t, r, batch.condition, guidance)
        wanted, mapped = prediction.detach().clone(), torch.cat([midway, rest])  # a corrected row has no map loss
        if len(part := self.rows_to_pass(mapped)):
            some = (value[part] for value in (prediction.detach(), x, t, r))
            target = self.map_target(still, take(batch, part), guidance_of(guidance, part), *some)
            wanted[mapped] = target[: len(mapped)]
        loss, dropped = guarded_consistency_loss(prediction, wanted, c=None)
        second = 0.0 * loss
        if len(part := self.rows_to_pass(corrected)):
            drawn = (x - rows(t, x) * prediction)[part]
            found, lost = self.correction(
                networks[FAKE], drawn, fresh[part], corrected_t.t[part], take(batch, part), guidance_of(guidance, part)
            )
            second = second.index_add(0, corrected, found[: len(corrected)])
            dropped = dropped.index_copy(0, corrected, lost[: len(corrected)])
        return Losses(
            by_network={STUDENT: times.weigh(loss)},
            secondary={STUDENT: corrected_t.weigh(second)},
            dropped={STUDENT: dropped},
            tracked={"map_error": mean_square(prediction.detach() - wanted)},
        )

    @torch.no_grad()
    def map_target(
        self,
        network: nn.Module,
        batch: Batch,
        guidance: Tensor | float,
        prediction: Tensor,
        x: Tensor,
        t: Tensor,
        r: Tensor,
    ) -> Tensor:
        """Return ``v(x_r, r) + (t - r) dF/dr`` where F = `prediction` jumps to, `[B, C, h, w]`."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        still = torch.zeros_like(x)
        _, change = self.average_velocity_dual(network, x, still, t, zero, r, one, batch.condition, guidance)
        velocity = self.teacher_velocity(x - rows(t - r, x) * prediction, r, batch, guidance)
        return velocity + rows(t - r, x) * change

    def correction(
        self, fake: nn.Module, drawn: Tensor, noise: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Return DMD's loss of each row by what was drawn, over the number of its elements, and which were dropped."""
        with torch.no_grad():
            x_t = self.noisy(drawn.detach(), noise, t)
            y_teacher = clean(x_t, t, self.teacher_velocity(x_t, t, batch, guidance))
            y_fake = self.predict_x0(fake, x_t, t, batch.condition, guidance)
        loss, dropped = guarded_dmd_loss(y_teacher, y_fake, drawn)
        return loss / drawn[0].numel(), dropped
