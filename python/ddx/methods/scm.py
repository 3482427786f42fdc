"""Continuous-time consistency models in TrigFlow (Lu & Song 2024, arXiv:2410.11081), by distillation or from data.

x_t  = cos(t) s_d x0 + sin(t) s_d z                                     TrigFlow; latents of unit variance times s_d
F    = cos(t) z - sin(t) x0, as the network sees them                   f = cos(t) x_t - sin(t) s_d F
dx   = s_d F_teacher, guided; or cos(t) s_d z - sin(t) s_d x0           distillation; training
J    = dF / (cos(t) sin(t) dx / s_d, cos(t) sin(t))                     a forward-mode derivative
h    = -cos(t)^2 (s_d F- - dx) - r (cos(t) sin(t) x_t + s_d J)          r from 0 to 1 as it warms up
loss = exp(-u(t)) / (s_d tan(t)) |F - F- - h / (|h| + c)|^2 + u(t)      u learned, by a head that is not exported

Any teacher is seen as flow matching (:mod:`ddx.methods.parts.flow_view`), and a flow network inside TrigFlow is exact:
with tau = sin(t) / (sin(t) + cos(t)) the state x_t / s_d is sqrt(tau^2 + (1 - tau)^2) times longer than the flow's, and

F    = [(1 - 2 tau) x_tau + (1 - 2 tau + 2 tau^2) v(x_tau, tau)] / sqrt(tau^2 + (1 - tau)^2)

Along J's direction tau moves by tau (1 - tau), and x_tau by that times the path's velocity.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.scm_tangent import guarded_scm_loss
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.config import FlowConfig, VelocityConfig, above_zero, at_least, changed
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.flow_view import mean_square, rows
from ddx.methods.parts.path import DerivativeConfig, path_velocity, velocity_derivative
from ddx.networks.guidance import guidance_input

WEIGHT = "weight"


@dataclass(frozen=True, kw_only=True)
class SCMConfig(VelocityConfig, DerivativeConfig):
    """The published form; the log-normal times are SANA-Sprint's (0.2, 1.6), which are in units of s_d = 0.5."""

    time_sampling: str = changed(FlowConfig, "time_sampling", "log-normal")
    time_mean: float = changed(FlowConfig, "time_mean", 0.2 + math.log(2.0))
    time_std: float = changed(FlowConfig, "time_std", 1.6)
    tangent_warmup: float = option(
        0.1, "share of the run in which the tangent's second half rises from 0 to 1; above 1: number of updates"
    )
    tangent_norm: str = option("l2", "norm for the normalisation of tangents", choices=("l2", "rms"))
    tangent_c: float = option(0.1, "constant added to that norm")
    sigma_data: float = option(0.5, "s_d, the standard deviation of latents in TrigFlow")
    learned_weight: bool = option(True, "learn the weight of each time, exp(-u(t)); no: u = 0")
    weight_learning_rate_scale: float = option(100.0, "learning rate of u, relative to the student's")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "tangent_c", "sigma_data", "weight_learning_rate_scale")
        at_least(self, 0.0, "tangent_warmup")
        if self.tangent_warmup > 1.0 and not self.tangent_warmup.is_integer():
            raise UsageError(
                f"tangent_warmup = {self.tangent_warmup} is neither a share of the run nor a number of updates",
                hint="--tangent-warmup 0.1, or --tangent-warmup 4000",
            )


class LogWeight(nn.Module):
    """u(t): a linear head on sines and cosines of log tan(t), zero at the start."""

    frequencies: Tensor

    def __init__(self, num_frequencies: int = 8, span: float = 8.0) -> None:
        """Take the number of frequencies, and how far from 0 log tan(t) is told apart."""
        super().__init__()
        self.span = span
        steps = torch.arange(1, num_frequencies + 1, dtype=torch.float32)
        self.register_buffer("frequencies", 0.5 * math.pi * steps / span, persistent=False)
        self.head = nn.Linear(2 * num_frequencies, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tau: Tensor) -> Tensor:
        """Return u float32 `[B]` for flow times float64 `[B]`; log tan(t) is their logit."""
        angles = torch.logit(tau).clamp(-self.span, self.span).float()[:, None] * self.frequencies
        u: Tensor = self.head(torch.cat([angles.cos(), angles.sin()], dim=1))
        return u.squeeze(1).float()


def trig_prediction(v: Tensor, x: Tensor, tau: Tensor) -> Tensor:
    """Return F `[B, ...]` of the velocity v at the flow state x and flow time tau, float64 `[B]`."""
    norm = (tau**2 + (1.0 - tau) ** 2).sqrt()
    return rows((1.0 - 2.0 * tau) / norm, x) * x + rows(norm, v) * v


class SCM(FlowMethod):
    """Continuous-time consistency distillation and training."""

    config: SCMConfig
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-6,
        "optimizer": "radam",
        "adam_beta2": 0.99,
        "clip_norm": 0.1,
    }

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the weight of the times if it is learned."""
        if not self.config.learned_weight:
            return super().networks()
        scale = self.config.weight_learning_rate_scale
        return *super().networks(), NetworkSpec(name=WEIGHT, learning_rate_scale=scale, lora=False)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return one update of both."""
        return (Turn(trains=(STUDENT, WEIGHT) if self.config.learned_weight else (STUDENT,)),)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return the network of `spec`."""
        return LogWeight().to(self.teacher.device) if spec.name == WEIGHT else super().build(spec)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the tangent loss of each row for the student, and the loss that the weight learns by."""
        config, student = self.config, networks[STUDENT]
        times = self.draw_times(batch)
        # off the ends by what a difference moves, and by a rounding: a process's clock has no slope outside of them
        margin = config.jvp_step if config.jvp == "finite" else 1e-6
        tau = times.t.clamp(self.view.t_min + margin, self.view.t_max - margin)
        guidance = self.draw_guidance(batch)
        noise = self.draw_noise(batch)
        x = self.noisy(batch.x0, noise, tau)
        with torch.no_grad():
            along = path_velocity(self.view, config.velocity_from, x, tau, noise, batch, guidance)
            output_tangent = self.output_tangent(student, x, along, tau, batch, guidance)
        output = trig_prediction(self.velocity(student, x, tau, batch.condition, guidance), x, tau)
        u = networks[WEIGHT](tau) if WEIGHT in networks else torch.zeros(len(x), device=x.device)
        scale, angle = config.sigma_data, torch.atan2(tau, 1.0 - tau)
        loss, dropped = guarded_scm_loss(
            output,
            output.detach(),
            scale * trig_prediction(along, x, tau),
            output_tangent,
            rows(scale * (angle.cos() + angle.sin()), x) * x,
            angle,
            u.detach(),
            warmup=self.warmup(batch.progress, batch.step),
            sigma_data=scale,
            normalise=_norm(config.tangent_norm),
            c=config.tangent_c,
        )
        tracked = {"jvp_rms": mean_square(output_tangent).sqrt()}
        if WEIGHT not in networks:
            return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped}, tracked=tracked)
        weighted = (loss - u).detach()  # exp(-u) times the error: its derivative by u is minus itself
        of_weight = torch.where(dropped, 0.0, weighted * torch.exp(u.detach() - u) + u)
        return Losses(
            by_network={STUDENT: times.weigh(loss), WEIGHT: times.weight * of_weight},
            dropped={STUDENT: dropped, WEIGHT: dropped},
            tracked={**tracked, "log_weight": u},
        )

    def output_tangent(
        self, student: nn.Module, x: Tensor, along: Tensor, tau: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return J `[B, C, h, w]` at the flow state x, whose path has the velocity `along`; no gradients."""
        dtau = tau * (1.0 - tau)
        dx = rows(dtau, x) * along
        with guidance_input(student, guidance):
            v, dv = velocity_derivative(self.view, student, x, dx, tau, dtau, batch.condition, self.config)
        tangent: Tensor = torch.func.jvp(trig_prediction, (v, x, tau), (dv, dx, dtau))[1]
        return tangent

    def host_numbers(self, step: int, progress: float) -> Hashable:
        """Return the share of the tangent's warm-up: another one in each step until it is over."""
        return self.warmup(progress, step)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the warm-up of the tangent, while it lasts."""
        return ("tangent_warmup",) if share < self.config.tangent_warmup <= 1.0 else ()

    def warmup(self, progress: float, step: int) -> float:
        """Return r at this share of the run, and this step (from 0)."""
        length = self.config.tangent_warmup
        if length > 1.0:  # updates: the student's is the first of a step's, as where the authors count
            return min(1.0, (step * len(self.turns(step)) + 1) / length)
        return min(1.0, progress / length) if length > 0.0 else 1.0


def _norm(name: str) -> Literal["l2", "rms"]:
    return "rms" if name == "rms" else "l2"
