"""Rectified flow, repeated (Liu et al. 2022, arXiv:2209.03003): straight lines between noise and where its ODE ends.

x_1 = noise,  x_0 = end of the guided ODE from x_1              solved inside the step, or stored
loss = | v(x_t, t) - (x_1 - x_0) |^2,  x_t = (1 - t) x_0 + t x_1

Pairs belong together, so at the noise end the regression has one answer: where the ODE ends. In between lines cross
less each round; a round's ODE is that of the student at its beginning, the first round's the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.config import PAIRS, FlowConfig, at_least, within
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.pairs import SAMPLER_HELP, check_pairs, sampled_end
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.samplers.names import DETERMINISTIC, OWN

BEFORE = "before"


@dataclass(frozen=True, kw_only=True)
class ReFlowConfig(FlowConfig):
    """One round, with pairs from a few steps of Heun's solver."""

    pairs: str = option(
        "solved",
        "source of the pairs of noise and picture: solved in each step, or stored by `ddx precompute --synthetic`",
        choices=PAIRS,
    )
    solver_steps: int = option(8, "solver steps from noise to picture, equal in flow time")
    solver_order: int = option(2, "1: Euler, one evaluation a step; 2: Heun, two")
    sampler: str = option(OWN, SAMPLER_HELP, choices=DETERMINISTIC)
    rounds: int = option(1, "number of rounds; each later round draws its pairs from the student's ODE")
    round_length: int | None = option(None, "training steps per round, except the last (none: equal rounds)")
    noise_share: float = option(0.25, "share of rows that train at pure noise, where a one-step student starts")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "solver_steps", "solver_order", "rounds", "round_length")
        within(self, 1, 2, "solver_order")
        within(self, 0.0, 1.0, "noise_share")


class ReFlow(FlowMethod):
    """Rectified flow on the pairs of an ODE."""

    config: ReFlowConfig
    sampler: Sampler = "ode"
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4}

    def __init__(self, config: ReFlowConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        check_pairs(config.sampler, config.pairs, teacher)

    @property
    def reads_pairs(self) -> bool:
        """See :meth:`Method.reads_pairs`: those of the first round."""
        return self.config.pairs == "stored"

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the length of a round, where it is a share of the run."""
        return ("round_length",) if self.config.rounds > 1 and self.config.round_length is None else ()

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and with several rounds the snapshot whose ODE makes the pairs."""
        student = NetworkSpec(name=STUDENT)
        if self.config.rounds == 1:
            return (student,)
        return student, NetworkSpec(name=BEFORE, average_of=STUDENT, decay=1.0)

    def round(self, step: int) -> int:
        """Return the number of the round that training step `step` is in, from 0."""
        return self.stage_at(step, self.config.rounds, self.config.round_length)

    def renewed(self, step: int) -> tuple[str, ...]:
        """Take a new snapshot where a round begins."""
        return (BEFORE,) if step > 0 and self.round(step) > self.round(step - 1) else ()

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the squared distance of each row to its line's direction, and which rows were dropped."""
        guidance, times = self.draw_guidance(batch), self.draw_times(batch)
        top = self.view.t_max
        t = torch.where(batch.random.uniform() < self.config.noise_share, top, times.t)
        source = networks[BEFORE] if self.round(batch.step) else None
        if source is None and batch.noise is not None:
            start, end = self.view.start(batch.noise, top), batch.x0
        else:
            start = self.view.start(self.draw_noise(batch), top)
            end = self.solve(start, batch, guidance, source)
        direction = (start - end) / top
        x_t = end + rows(t, end) * direction
        prediction = self.velocity(networks[STUDENT], x_t, t, batch.condition, guidance)
        loss, dropped = guarded_consistency_loss(prediction, direction, c=None)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})

    def solve(self, x: Tensor, batch: Batch, guidance: Tensor | float, source: nn.Module | None) -> Tensor:
        """Return the end of the ODE of `source` from x at the noisiest time; None is the guided teacher's."""
        if source is None and self.config.sampler != OWN:
            return sampled_end(self.view, self.config.sampler, x, batch, guidance, self.config.solver_steps)

        def slope(x: Tensor, t: Tensor) -> Tensor:
            if source is None:
                return self.teacher_velocity(x, t, batch, guidance)
            return self.velocity(source, x, t, batch.condition, guidance)

        return self.view.ode_end(slope, x, self.config.solver_steps, self.config.solver_order)
