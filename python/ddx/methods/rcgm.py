"""RCGM (Sun & Lin 2025, in the form of TwinFlow): a flow map from nothing but forward passes.

x_m = x_t - D v,  m = t - D                 v: the guided velocity at (x_t, t), D = 0.01
S   = displacement of N = 2 equal jumps of the target from (x_m, m) to r
e   = [(t - r) F(x_t, t, r) - S] / D - v    for t - r < D: F - v
loss = | F - stop-gradient(F - clip(e, ±1)) |^2

A map is exact when a jump equals a small step of the ODE and the jumps after it, so e is the error of F, times the
number of small steps that fit in; for the exact map it is O(D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, NetworkSpec, Turn, bare, student_and_target
from ddx.methods.parts.config import above_zero, at_least, within
from ddx.methods.parts.flow_map import FlowMap, Jump, PairsConfig, displacement
from ddx.methods.parts.flow_view import rows


@dataclass(frozen=True, kw_only=True)
class RCGMConfig(PairsConfig):
    """The form that TwinFlow takes as its base."""

    small_step: float = option(0.01, "length D, in flow time, of the step that follows the velocity")
    target_jumps: int = option(2, "number N of the target's jumps over the rest of the way")
    error_clip: float = option(1.0, "limit on each element of the error")
    target_decay: float = option(0.99, "decay of the target that jumps the rest; 0: the target is the student")
    null_from: str = option(
        "teacher",
        "velocity of the null caption that guidance leads away from, with velocity_from data: the teacher's, or the "
        "target's own",
        choices=("teacher", "own"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "small_step", "error_clip")
        within(self, 0.0, 0.5, "small_step")
        at_least(self, 1, "target_jumps")
        within(self, 0.0, 1.0, "target_decay", open_end=True)


class RCGM(FlowMap):
    """RCGM on random pairs of times."""

    config: RCGMConfig
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": "radam", "learning_rate": 1e-4, "adam_beta2": 0.99}

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the target unless the student is its own."""
        return student_and_target(self.config.target_decay)

    @torch.no_grad()
    def error_of(
        self,
        target: nn.Module,
        batch: Batch,
        guidance: Tensor | float,
        prediction: Tensor,
        x_t: Tensor,
        t: Tensor,
        r: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Return e of F = `prediction` at (x_t, t, r), each element within ±`error_clip`, `[B, C, h, w]`."""
        config = self.config

        def jump(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return self.average_velocity(target, x, t, r, batch.condition, guidance)

        source, null_from = config.velocity_from, config.null_from
        velocity = self.instant_velocity(source, target, batch, noise, x_t, t, guidance, null_from)
        found = map_error(prediction, velocity, jump, x_t, t, r, step=config.small_step, num_jumps=config.target_jumps)
        return found.clamp(-config.error_clip, config.error_clip)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the clipped squared error of each row, and which rows were dropped."""
        student = networks[STUDENT]
        guidance, (times, r) = self.draw_guidance(batch), self.draw_pairs(batch, self.config)
        noise = self.draw_noise(batch)
        x_t = self.noisy(batch.x0, noise, times.t)
        prediction = self.average_velocity(student, x_t, times.t, r, batch.condition, guidance)
        target = networks.get(TARGET, bare(student))
        error = self.error_of(target, batch, guidance, prediction.detach(), x_t, times.t, r, noise)
        loss, dropped = guarded_consistency_loss(prediction, prediction.detach() - error, c=None)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})


def map_error(
    prediction: Tensor,
    velocity: Tensor,
    jump: Jump,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    *,
    step: float,
    num_jumps: int,
) -> Tensor:
    """Return e of F = `prediction` at (x_t, t, r), `[B, C, h, w]`; times float64 `[B]`. For pairs closer than `step`
    it is F - v.
    """
    middle = torch.maximum(t - step, r)
    ends = [torch.lerp(middle, r, part / num_jumps) for part in range(num_jumps)] + [r]
    rest = displacement(jump, x_t - rows(t - middle, x_t) * velocity, ends)
    far = (rows(t - r, x_t) * prediction - rest) / step - velocity
    return torch.where(rows((t - r >= step).float(), x_t) > 0.0, far, prediction - velocity)
