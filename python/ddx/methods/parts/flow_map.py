"""What flow-map students share: a velocity model of two times, ``F(x, t, r)``, the average velocity from t down to r.

x_r = x_t - (t - r) F(x_t, t, r)          F(x, t, t) = v(x, t), the velocity of the ODE

The second time enters as the interval, how far the student jumps on the clock of its sampler, and not as r: so n equal
steps feed one constant, which the export folds away, in a folder for each n. Its embedding is multiplied by the
interval, so at r = t the new student is the teacher exactly, and near it close to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import STUDENT, Batch, NetworkSpec, bare
from ddx.methods.parts.config import FlowConfig, VelocityConfig, within
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.time_sampling import Times, sample_times
from ddx.networks.guidance import INTERVAL, add_interval_embedder, check_folds, guidance_input, interval_input
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.condition import Condition

Jump = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The average velocity `[B, ...]` from (x, t) to r."""


@dataclass(frozen=True, kw_only=True)
class PairsConfig(VelocityConfig):
    """How two times of a row are drawn: t as the time settings say, and an earlier r."""

    second_time: str = option(
        "below",
        "earlier time r: uniform below t, or the earlier of two drawn times",
        choices=("below", "drawn"),
    )
    same_time_share: float = option(0.25, "share of rows with r = t, where the student learns the velocity itself")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "same_time_share")


class FlowMap(FlowMethod):
    """A method whose student, and whatever averages it, takes the length of its jump."""

    sampler: Sampler = "ode"
    folded_steps: tuple[int, ...] = (1, 2, 4)
    jumping_networks: ClassVar[tuple[str, ...]] = (STUDENT,)
    """The networks that take intervals, and with them their averages."""

    def __init__(self, config: FlowConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        check_folds(teacher, INTERVAL)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return a copy of the teacher's network that takes an interval, if it is to jump."""
        network = super().build(spec)
        if (spec.average_of or spec.name) in self.jumping_networks:
            add_interval_embedder(self.teacher, network)
        return network

    # what a loss needs

    def draw_pairs(self, batch: Batch, config: PairsConfig) -> tuple[Times, Tensor]:
        """Return times t, whose losses go through `weigh`, and r in [0, t], flow times float64 `[B]`."""
        times = self.draw_times(batch)
        u, same = batch.random.uniform(), batch.random.uniform() < config.same_time_share
        if config.second_time == "drawn":
            other = sample_times(u, config, t_min=0.0, t_max=self.view.t_max)
            times, r = dataclasses.replace(times, t=torch.maximum(times.t, other)), torch.minimum(times.t, other)
        else:
            r = u * times.t
        return times, torch.where(same, times.t, r)

    def interval(self, t: Tensor, r: Tensor) -> Tensor:
        """Return how far apart flow times t and r are on the sampler's clock: in [0, 1], float64."""
        return self.view.position(t) - self.view.position(r)

    def average_velocity(
        self, network: nn.Module, x: Tensor, t: Tensor, r: Tensor, condition: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return F(x, t, r) of a network that takes intervals, float32 `[B, C, h, w]`."""
        return self.jump_velocity(network, x, t, self.interval(t, r), condition, guidance)

    def jump_velocity(
        self,
        network: nn.Module,
        x: Tensor,
        t: Tensor,
        interval: Tensor | float,
        condition: Condition,
        guidance: Tensor | float,
    ) -> Tensor:
        """Return the average velocity over an interval of the sampler's clock that ends below t; 0 for one time."""
        with interval_input(network, interval):
            return self.velocity(network, x, t, condition, guidance)

    @torch.no_grad()
    def average_velocity_dual(
        self,
        network: nn.Module,
        x: Tensor,
        dx: Tensor,
        t: Tensor,
        dt: Tensor,
        r: Tensor,
        dr: Tensor,
        condition: Condition,
        guidance: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        """Return F and its exact derivative along (dx, dt, dr), dt and dr float64 `[B]`; no gradients."""
        interval, dinterval, *_ = torch.func.jvp(self.interval, (t, r), (dt, dr))
        network = bare(network)
        with interval_input(network, interval, dinterval), guidance_input(network, guidance):
            return self.view.velocity_dual(network, x, dx, t, dt, condition)

    def instant_velocity(
        self,
        source: str,
        network: nn.Module,
        batch: Batch,
        noise: Tensor,
        x_t: Tensor,
        t: Tensor,
        guidance: Tensor | float,
        null_from: str = "teacher",
    ) -> Tensor:
        """Return the velocity at (x_t, t) that the map integrates, by `velocity_from`; to be called without gradients.

        From data it is ``eps - x0 + (1 - 1/s) (F(x_t, t, t) - v_null)``, with F of `network` and the teacher's unguided
        velocity: its fixed point ``v_null + s (v - v_null)`` is guidance at scale s (TwinFlow, whose factor of 0.8 is
        s = 5). null_from "own": v_null is F of the null caption, as TwinFlow has it.
        """
        if source == "teacher":
            return self.teacher_velocity(x_t, t, batch, guidance)
        velocity = noise - batch.x0
        if isinstance(guidance, float | int) and guidance == 1.0:
            return velocity
        own = self.average_velocity(network, x_t, t, t, batch.condition, guidance)
        unsaid = batch.null.expand(len(x_t))
        if null_from == "own":
            null = self.average_velocity(network, x_t, t, t, unsaid, guidance)
        else:
            null = self.view.velocity(self.teacher.network(), x_t, t, unsaid)
        return velocity + rows(1.0 - 1.0 / guidance, own) * (own - null)

    # the exported student

    def step_velocity(
        self, student: nn.Module, x: Tensor, t: Tensor, condition: Condition, guidance: Tensor | float, num_steps: int
    ) -> Tensor:
        """Return the velocity of one of `num_steps` equal jumps."""
        return self.jump_velocity(student, x, t, 1.0 / num_steps, condition, guidance)

    def folded_numbers(self, num_steps: int) -> Mapping[str, float]:
        """Return the guidance, and the interval of `num_steps` equal jumps."""
        return {**super().folded_numbers(num_steps), INTERVAL: 1.0 / num_steps}


def displacement(jump: Jump, x: Tensor, times: Sequence[Tensor]) -> Tensor:
    """Return ``x - x_end`` `[B, ...]` of jumps from each of the flow times `[B]` to the next."""
    total = torch.zeros_like(x)
    for t, r in pairwise(times):
        total = total + rows(t - r, x) * jump(x - total, t, r)
    return total


def take(batch: Batch, index: Tensor) -> Batch:
    """Return the rows `index` of a batch; the random numbers stay those of the whole."""
    return dataclasses.replace(batch, x0=batch.x0[index], condition=batch.condition.index(index))


def guidance_of(guidance: Tensor | float, index: Tensor) -> Tensor | float:
    """Return the guidance of the rows `index`."""
    return guidance[index] if isinstance(guidance, Tensor) else guidance
