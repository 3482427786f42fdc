"""Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512): one step of the student does what two did before.

stage k:  n_k = n_0 / 2^k steps;  target = (x_t - x_r) / (t - r) after two half steps of the network before this stage
          t a multiple of the sampler's step 1/n_k, r the next one below

The first stage's two steps are the guided teacher's, so guidance enters there and is in the weights from then on. Later
ones are those of a copy that the student was when its stage began. The student takes the length of its step, and a
share of the rows repeats the steps of earlier stages, so the same weights still draw in several steps at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.config import FlowConfig, at_least, within
from ddx.methods.parts.flow_map import FlowMap, displacement
from ddx.methods.parts.flow_view import rows

BEFORE = "before"


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(FlowConfig):
    """Halving by itself; the last stage takes what is left of the run."""

    first_steps: int = option(32, "sampling steps of the student in the first stage: a power of two")
    stage_length: int | None = option(None, "training steps per stage, except the last (none: equal stages)")
    repeat_share: float = option(0.25, "share of rows that repeat the step of an earlier stage")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_steps < 1 or self.first_steps & (self.first_steps - 1):
            raise UsageError(f"first_steps = {self.first_steps} is no power of two", hint="--first-steps 32")
        at_least(self, 1, "stage_length")
        within(self, 0.0, 1.0, "repeat_share", open_end=True)


class Progressive(FlowMap):
    """Progressive distillation."""

    config: ProgressiveConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "lr_schedule": "linear"}

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the snapshot of it that the stage began with."""
        return NetworkSpec(name=STUDENT), NetworkSpec(name=BEFORE, average_of=STUDENT, decay=1.0)

    def stage(self, step: int) -> int:
        """Return the number of the stage that training step `step` is in, from 0."""
        return self.stage_at(step, self.config.first_steps.bit_length(), self.config.stage_length)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the length of a stage, where it is a share of the run."""
        return ("stage_length",) if self.config.stage_length is None else ()

    def renewed(self, step: int) -> tuple[str, ...]:
        """Take a new snapshot where a stage begins."""
        return (BEFORE,) if step > 0 and self.stage(step) > self.stage(step - 1) else ()

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the squared distance of each row to the velocity of two half steps, and which rows were dropped."""
        guidance, times = self.draw_guidance(batch), self.draw_times(batch)
        count = self.draw_count(batch)
        start = (self.view.position(times.t) * count).ceil().clamp(min=1.0).minimum(count)
        clock = [self.view.time_of_position((start - part) / count) for part in (0.0, 0.5, 1.0)]
        x_t = self.noisy(batch.x0, self.draw_noise(batch), clock[0])

        def half(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            if self.stage(batch.step) == 0:
                return self.teacher_velocity(x, t, batch, guidance)
            return self.jump_velocity(networks[BEFORE], x, t, 0.5 / count, batch.condition, guidance)

        with torch.no_grad():
            target = displacement(half, x_t, clock) / rows(clock[0] - clock[2], x_t)
        prediction = self.jump_velocity(networks[STUDENT], x_t, clock[0], 1.0 / count, batch.condition, guidance)
        loss, dropped = guarded_consistency_loss(prediction, target, c=None)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})

    def draw_count(self, batch: Batch) -> Tensor:
        """Return the number of sampling steps that each row is trained for: the stage's, or an earlier one's."""
        u, stage = batch.random.uniform(), self.stage(batch.step)
        earlier = stage - 1  # the first stage's half steps are the teacher's: those are not asked of the student
        share = self.config.repeat_share if earlier > 0 else 0.0
        back = torch.where(u < share, 1.0 + (u / max(share, 1e-9) * earlier).floor().clamp(max=earlier - 1.0), 0.0)
        return self.config.first_steps / 2.0 ** (stage - back)
