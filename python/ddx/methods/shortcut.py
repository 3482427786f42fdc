"""Shortcut models (Frans et al. 2024, arXiv:2410.12557): a student that knows how far it jumps learns to jump twice.

v     = F(x_t, t, 1/M)                                  most rows: flow matching at the smallest jump, guided here
F(x_t, t, d) = average of two jumps of d/2 by the target   one row in eight: d = 1, 1/2, 1/4, … 2/M

Jumps d are measured on the clock of the student's sampler and start at its multiples, where n = 1/d steps ask for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, NetworkSpec, Turn, bare, student_and_target
from ddx.methods.parts.config import VelocityConfig, within
from ddx.methods.parts.flow_map import FlowMap, displacement, guidance_of, take
from ddx.methods.parts.flow_view import rows


@dataclass(frozen=True, kw_only=True)
class ShortcutConfig(VelocityConfig):
    """The published form, with the teacher's velocity in place of the data's."""

    smallest_jumps: int = option(128, "number M of the smallest jumps from noise to picture, a power of two")
    bootstrap_share: float = option(0.125, "share of rows that learn a jump from two half jumps")
    target_decay: float = option(0.999, "decay of the target that takes the half jumps; 0: the target is the student")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smallest_jumps < 2 or self.smallest_jumps & (self.smallest_jumps - 1):
            raise UsageError(
                f"smallest_jumps = {self.smallest_jumps} is no power of two above 1", hint="--smallest-jumps 128"
            )
        within(self, 0.0, 1.0, "bootstrap_share")
        within(self, 0.0, 1.0, "target_decay", open_end=True)


class Shortcut(FlowMap):
    """Shortcut models."""

    config: ShortcutConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "weight_decay": 0.1}

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the target unless the student is its own."""
        return student_and_target(self.config.target_decay)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the squared distance of each row to its target, and which rows were dropped."""
        student, target_network = networks[STUDENT], networks.get(TARGET, bare(networks[STUDENT]))
        guidance, times, level = self.draw_guidance(batch), self.draw_times(batch), batch.random.uniform()
        noise = self.draw_noise(batch)
        doubled, simple = batch.random.pick(self.config.bootstrap_share)

        jump = torch.full_like(times.t, 1.0 / self.config.smallest_jumps)
        jump[doubled] = self.draw_jump(level[doubled])
        start = self.start_of(times.t, jump)
        t = times.t.clone()
        t[doubled] = self.view.time_of_position(start[doubled])
        x_t = self.noisy(batch.x0, noise, t)

        target = torch.empty_like(x_t)
        with torch.no_grad():
            if len(part := self.rows_to_pass(simple)):
                some, s = take(batch, part), guidance_of(guidance, part)
                velocity = self.instant_velocity(
                    self.config.velocity_from, target_network, some, noise[part], x_t[part], t[part], s
                )
                target[simple] = velocity[: len(simple)]
            if len(part := self.rows_to_pass(doubled)):
                some, s = take(batch, part), guidance_of(guidance, part)
                velocity = self.two_jumps(target_network, x_t[part], start[part], jump[part], some, s)
                target[doubled] = velocity[: len(doubled)]
        prediction = self.jump_velocity(student, x_t, t, jump, batch.condition, guidance)
        loss, dropped = guarded_consistency_loss(prediction, target, c=None)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})

    def draw_jump(self, u: Tensor) -> Tensor:
        """Return 1, 1/2, … or 2/M, each as likely, for uniform numbers; float64."""
        levels = int(math.log2(self.config.smallest_jumps))
        return 0.5 ** (u * levels).floor().clamp(max=levels - 1)

    def start_of(self, t: Tensor, jump: Tensor) -> Tensor:
        """Return the position where the jump around flow time t starts: a multiple of its length, float64."""
        count = (1.0 / jump).round()
        return ((self.view.position(t) * count).ceil().clamp(min=1.0)).minimum(count) * jump

    def two_jumps(
        self, network: nn.Module, x: Tensor, start: Tensor, jump: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return the average velocity of two jumps of half the length from position `start`."""
        times = [self.view.time_of_position(start - part * jump) for part in (0.0, 0.5, 1.0)]

        def half(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return self.jump_velocity(network, x, t, 0.5 * jump, batch.condition, guidance)

        return displacement(half, x, times) / rows(times[0] - times[2], x)
