"""What the methods that see their teacher as flow matching share: guidance, times, sampling and export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ddx.device import send
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Method, NetworkSpec
from ddx.methods.parts.config import FlowConfig
from ddx.methods.parts.flow_view import FlowView, clean, rows
from ddx.methods.parts.time_sampling import AdaptiveTimes, Times, sample_times
from ddx.networks.guidance import add_guidance_embedder, fold, guidance_input
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.extra_input import GUIDANCE


class FlowMethod(Method):
    """A method whose networks are velocity models ``v(x, t)`` of flow time; a student draws x0 as ``x - t v``."""

    config: FlowConfig
    guided_networks: tuple[str, ...] = (STUDENT,)
    """The networks that take guidance when a range of it is trained."""

    def __init__(self, config: FlowConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.view = FlowView(teacher)
        usual = self.usual_guidance()
        low, high = usual if teacher.folds_numbers else (teacher.default_guidance,) * 2
        given_low, given_high = config.guidance_min, config.guidance_max
        self.guidance_min = given_low if given_low is not None else min(low, high if given_high is None else given_high)
        self.guidance_max = given_high if given_high is not None else max(high, self.guidance_min)
        wanted = teacher.default_guidance if config.export_guidance is None else config.export_guidance
        self.export_guidance = min(max(wanted, self.guidance_min), self.guidance_max)
        self.first_time = self.view.t_max  # where drawing starts
        self.own_times = tuple(config.student_times or self.usual_times())  # where it steps, none for equal steps
        if self.own_times:
            self._require_free_times()
            self.first_time = float(self.view.sampled_times(self.own_times)[0])
        self.adaptive = AdaptiveTimes(device=teacher.device) if config.time_adaptive else None

    def usual_guidance(self) -> tuple[float, float]:
        """Return the range that is trained when nothing is said: by default the teacher's own scale alone."""
        return self.teacher.default_guidance, self.teacher.default_guidance

    def usual_times(self) -> tuple[float, ...]:
        """Return the flow times that the student draws at when nothing is said: by default none, for equal steps."""
        return ()

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance is an input of the student, and not one fixed number."""
        return self.guidance_min < self.guidance_max

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student alone."""
        return (NetworkSpec(name=STUDENT),)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return a copy of the teacher's network, which takes guidance if the method trains a range of it."""
        network = super().build(spec)
        name = spec.average_of or spec.name
        if self.takes_guidance and name in self.guided_networks:
            add_guidance_embedder(self.teacher, network)
        return network

    def _require_free_times(self) -> None:
        """Raise UsageError where the exported student's scheduler can draw in equal steps alone."""
        if self.folded_steps or (self.view.process.name == "vp" and self.sampler == "ode"):
            why = "its weights hold the length of equal steps" if self.folded_steps else "DDIM takes equal steps alone"
            raise UsageError(
                f"student_times = {self.own_times}: a student of {type(self).__name__} draws in equal steps, {why}",
                hint="leave --student-times away",
            )

    def student_times(self, num_steps: int) -> Tensor:
        """Return where the student's `num_steps` steps are, and 0: flow times, float64 `[n + 1]`."""
        if len(self.own_times) == num_steps:
            return self.view.sampled_times(self.own_times)
        return self.view.times(num_steps, self.first_time)

    # what a loss needs

    def draw_guidance(self, batch: Batch) -> Tensor | float:
        """Return the guidance of each row, float64 `[B]`, or the one that is fixed."""
        u = batch.random.uniform()  # also for a fixed one: the other draws are the same with a range and without
        low, high = self.guidance_min, self.guidance_max
        return low + (high - low) * u if self.takes_guidance else low

    def draw_times(self, batch: Batch) -> Times:
        """Return flow times, float64 `[B]`, as the settings say; the rows' losses go through `weigh`."""
        u = batch.random.uniform()
        quantile, weight = u, torch.ones(len(u), device=u.device)
        if self.adaptive is not None:
            quantile, weight = self.adaptive.draw(u)
        return Times(self.times_at(quantile), quantile, weight, None if self.adaptive is None else self.adaptive.note)

    def times_at(self, quantile: Tensor) -> Tensor:
        """Return the flow times, float64, at quantiles in [0, 1) of the distribution that the settings ask for."""
        return sample_times(quantile, self.config, t_min=self.view.t_min, t_max=self.view.t_max)

    def draw_noise(self, batch: Batch) -> Tensor:
        """Return unit noise, float32, shaped as the batch's latents."""
        return batch.random.normal(*batch.x0.shape[1:])

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return ``(1 - t) x0 + t noise``."""
        return rows(1.0 - t, x0) * x0 + rows(t, x0) * noise

    def velocity(
        self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return the velocity of a network that may take guidance, float32 `[B, C, h, w]`."""
        with guidance_input(network, guidance):
            return self.view.velocity(network, x, t, condition)

    def predict_x0(
        self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return ``x - t v``, the clean latents that the network sees behind x."""
        return clean(x, t, self.velocity(network, x, t, condition, guidance))

    def teacher_velocity(self, x: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return the frozen teacher's guided velocity; differentiable by x where that is asked for."""
        return self.view.guided(self.teacher.network(), x, t, batch.condition, batch.null, guidance)

    # the exported student

    @torch.no_grad()
    def draw(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, *, guidance: float | None = None
    ) -> Tensor:
        """See :meth:`Method.draw`: what the exported pipeline computes."""
        return self.drawn(student, noises, condition, self.export_guidance if guidance is None else guidance)

    def drawn(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return what :meth:`draw` does, differentiable, at a guidance of each row, `[B]`, or one of all."""
        num_steps = len(noises)
        times = send(self.student_times(num_steps), noises[0].device)
        x = self.view.start(noises[0], times[0])
        for step, (t, r) in enumerate(pairwise(times)):
            v = self.step_velocity(student, x, t.expand(len(x)), condition, guidance, num_steps)
            if self.sampler != "consistency" or step + 1 == num_steps:
                x = x + rows(r - t, x) * v
            else:
                x = self.noisy(clean(x, t, v), noises[step + 1], r)
        return x

    def step_velocity(
        self, student: nn.Module, x: Tensor, t: Tensor, condition: Condition, guidance: Tensor | float, num_steps: int
    ) -> Tensor:
        """Return the velocity that one of `num_steps` sampling steps takes."""
        return self.velocity(student, x, t, condition, guidance)

    def plain_network(self, student: nn.Module, num_steps: int = 1) -> nn.Module:
        """Return the student with `export_guidance`, and what else it takes, folded in."""
        return fold(self.teacher, student, self.folded_numbers(num_steps))

    def folded_numbers(self, num_steps: int) -> Mapping[str, float]:
        """Return what the embedders are fed in every step of `num_steps`, by their name."""
        return {GUIDANCE: self.export_guidance}

    def export_notes(self) -> dict[str, Any]:
        """Return the guidance of the exported student, the range that was trained, and where drawing starts."""
        notes: dict[str, Any] = {
            "guidance": self.export_guidance,
            "guidance_range": [self.guidance_min, self.guidance_max],
            "sampler": self.sampler,
        }
        if self.view.is_flow and self.first_time < self.view.t_max:
            notes["first_sigma"] = self.first_time
        elif self.view.process.name == "vp":
            notes["first_timestep"] = self.view.timesteps((self.first_time,))[0]
        return notes | self.notes_of_times()

    def notes_of_times(self) -> dict[str, Any]:
        """Return the times that the student draws at, where they are not equal steps, as its pipeline takes them."""
        if not self.own_times:
            return {}
        if self.view.process.name == "vp":
            return {"student_timesteps": self.view.timesteps(self.own_times)}
        return {"student_sigmas": self.view.sampled_times(self.own_times)[:-1].tolist()}

    # what is carried from step to step

    def state(self) -> dict[str, Tensor]:
        """Return the histogram of adaptive times."""
        return {} if self.adaptive is None else {"adaptive_times": self.adaptive.sums}

    def end_step(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Count the losses of adaptive times."""
        if self.adaptive is not None:
            self.adaptive.end_step(mean)
