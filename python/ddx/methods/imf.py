"""Improved mean flows (Geng et al. 2025, arXiv:2512.02012): regression on a velocity, not on the network's own output.

V = u + (t - r) sg(du/dt)              u = F(x_t, t, r);  du/dt along (v_c, 1, 0)
loss = |V - v|^2 / sg(|V - v|^2 + c)^p

v is the guided velocity of the teacher or of the data. The tangent v_c is the network's own velocity F(x_t, t, t), so
what is differentiated depends on (x_t, t) alone, and V predicts v as in flow matching. |.|^2 is a mean over elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ddx.config import option
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, Batch, Losses, Turn, bare
from ddx.methods.parts.config import above_zero, changed, within
from ddx.methods.parts.flow_map import FlowMap, PairsConfig
from ddx.methods.parts.flow_view import mean_square, rows


@dataclass(frozen=True, kw_only=True)
class IMFConfig(PairsConfig):
    """The published form on latents. Guidance ranges from 1 to half more than the teacher's own, unless it is given."""

    time_sampling: str = changed(PairsConfig, "time_sampling", "logit-normal")
    time_mean: float = changed(PairsConfig, "time_mean", -0.4)
    second_time: str = changed(PairsConfig, "second_time", "drawn")
    same_time_share: float = changed(PairsConfig, "same_time_share", 0.5)
    weight_power: float = option(1.0, "power p of the adaptive weight; 0: no weight")
    weight_floor: float = option(1e-3, "constant added to the squared error in the adaptive weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 2.0, "weight_power")
        above_zero(self, "weight_floor")


class IMF(FlowMap):
    """Improved mean flows."""

    config: IMFConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "adam_beta2": 0.95}

    def usual_guidance(self) -> tuple[float, float]:
        """Return a range, so that guidance is an input of the student; without guidance there is none."""
        usual = self.teacher.default_guidance
        return min(1.0, usual), usual if usual <= 1.0 else 1.5 * usual

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the weighted squared error of each row, and which rows were dropped."""
        config, student = self.config, networks[STUDENT]
        still = bare(student)
        guidance, (times, r) = self.draw_guidance(batch), self.draw_pairs(batch, config)
        t, noise = times.t, self.draw_noise(batch)
        x_t = self.noisy(batch.x0, noise, t)
        with torch.no_grad():
            velocity = self.instant_velocity(config.velocity_from, still, batch, noise, x_t, t, guidance)
            tangent = self.jump_velocity(still, x_t, t, 0.0, batch.condition, guidance)
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        _, change = self.average_velocity_dual(still, x_t, tangent, t, one, r, zero, batch.condition, guidance)
        prediction = self.average_velocity(student, x_t, t, r, batch.condition, guidance) + rows(t - r, x_t) * change
        squared = mean_square(prediction.detach() - velocity)
        weight = (squared + config.weight_floor) ** -config.weight_power
        loss, dropped = guarded_consistency_loss(prediction, velocity, weight, c=None)
        return Losses(
            by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped}, tracked={"squared_error": squared}
        )
