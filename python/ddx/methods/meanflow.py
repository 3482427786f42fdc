"""MeanFlow (Geng et al. 2025, arXiv:2505.13447): the average velocity, by its own differential identity.

u(x_t, t, r) = 1 / (t - r) * integral of v from r to t            x_r = x_t - (t - r) u
u_target     = v - (t - r) du/dt,  du/dt = the derivative of u along (v, 1, 0) in (x, t, r)
loss         = |u - sg u_target|^2 / sg( |u - sg u_target|^2 + 1e-3 )^p                     sums over a row's elements

v is the teacher's guided velocity in distillation, ``eps - x0`` in training. At r = t the target is v itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, Batch, Losses, Turn, bare
from ddx.methods.parts.config import changed, within
from ddx.methods.parts.flow_map import FlowMap, PairsConfig
from ddx.methods.parts.flow_view import mean_square, rows
from ddx.methods.parts.path import DerivativeConfig, velocity_derivative
from ddx.networks.guidance import guidance_input, interval_input

SMALLEST_ERROR = 1e-3


@dataclass(frozen=True, kw_only=True)
class MeanFlowConfig(PairsConfig, DerivativeConfig):
    """The published form for latents; small models of pixels had same_time_share 0.25 and error_power 0.75."""

    time_sampling: str = changed(PairsConfig, "time_sampling", "logit-normal")
    time_mean: float = changed(PairsConfig, "time_mean", -0.4)
    second_time: str = changed(PairsConfig, "second_time", "drawn")
    same_time_share: float = changed(PairsConfig, "same_time_share", 0.75)
    error_power: float = option(
        1.0, "power p of the adaptive weight: 0: the squared error; 1: equal weight for every row"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "error_power")


class MeanFlow(FlowMap):
    """The average velocity, by distillation and from data."""

    config: MeanFlowConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "adam_beta2": 0.95}

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the loss of each row, and which rows were dropped."""
        config, student = self.config, networks[STUDENT]
        times, r = self.draw_pairs(batch, config)
        # off the ends by what a difference moves, and by a rounding: a process's clock has no slope outside of them
        margin = config.jvp_step if config.jvp == "finite" else 1e-6
        t = times.t.clamp(self.view.t_min + margin, self.view.t_max - margin)
        r = torch.minimum(r, t)
        guidance = self.draw_guidance(batch)
        noise = self.draw_noise(batch)
        x = self.noisy(batch.x0, noise, t)
        with torch.no_grad():
            v = self.instant_velocity(config.velocity_from, bare(student), batch, noise, x, t, guidance)
            slope = self.derivative(student, x, v, t, r, batch, guidance)
            target = v - rows(t - r, x) * slope
        u = self.average_velocity(student, x, t, r, batch.condition, guidance)
        mean, dropped = guarded_consistency_loss(u, target, c=None)
        error = x[0].numel() * mean
        loss = error / (error.detach() + SMALLEST_ERROR) ** config.error_power
        return Losses(
            by_network={STUDENT: times.weigh(loss)},
            dropped={STUDENT: dropped},
            tracked={"error": mean, "jvp_rms": mean_square(slope).sqrt()},
        )

    def derivative(
        self, student: nn.Module, x: Tensor, v: Tensor, t: Tensor, r: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return du/dt `[B, C, h, w]` along the path with velocity v, r held; no gradients."""
        one = torch.ones_like(t)
        interval, widening = torch.func.jvp(self.interval, (t, r), (one, torch.zeros_like(r)))[:2]
        with interval_input(student, interval, widening), guidance_input(student, guidance):
            return velocity_derivative(self.view, student, x, v, t, one, batch.condition, self.config)[1]
