"""What the methods share whose student is taught by a discriminator first of all.

x_s = (1 - s) x0 + s eps,  x = x_s - s v_theta(x_s, s)             s: a time of the sampler, mostly pure noise
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.device import send
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Turn
from ddx.methods.parts.adversarial import DISCRIMINATOR, AdversarialConfig
from ddx.methods.parts.config import FlowConfig, at_least, changed, check_num_times, within
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.reward import RewardConfig
from ddx.methods.parts.time_sampling import grid_index


@dataclass(frozen=True, kw_only=True)
class AdversarialStudentConfig(AdversarialConfig, FlowConfig, RewardConfig):
    """The times of the student, those of the discriminator, and its form. Guidance is that of the stored latents."""

    num_steps: int = option(4, "number of steps that the student learns to draw in")
    noise_share: float = option(0.6, "additional share of rows that start at pure noise")
    time_sampling: str = changed(FlowConfig, "time_sampling", "logit-normal")
    time_mean: float = changed(FlowConfig, "time_mean", 1.0)

    def __post_init__(self) -> None:
        FlowConfig.__post_init__(self)
        AdversarialConfig.__post_init__(self)
        RewardConfig.__post_init__(self)
        at_least(self, 1, "num_steps")
        check_num_times(self)
        within(self, 0.0, 1.0, "noise_share")
        low, high = self.guidance_min, self.guidance_max
        if low != high:
            raise UsageError(
                f"guidance_min = {low}, guidance_max = {high}: a discriminator teaches the guidance of what is stored",
                hint="leave both away; --method sana-sprint trains a range",
            )


class AdversarialStudent(FlowMethod):
    """A student that denoises stored latents from the times of its sampler; discriminator and student take turns."""

    config: AdversarialStudentConfig

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the discriminator's update, then the student's."""
        return Turn(trains=(DISCRIMINATOR,), name="discriminator"), Turn(trains=(STUDENT,), name="student")

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the student starts from, on the flow path, and its flow times, float64 `[B]`."""
        num_steps = self.config.num_steps
        times = send(self.student_times(num_steps), batch.x0.device)
        step = grid_index(batch.random.uniform(), num_steps) - 1
        step = torch.where(batch.random.uniform() < self.config.noise_share, 0, step)
        noise = self.draw_noise(batch) if batch.noise is None else batch.noise
        s = times[step]
        noisy = self.noisy(batch.x0, noise, s)
        return torch.where((step == 0).reshape(-1, 1, 1, 1), self.view.start(noise, times[0]), noisy), s

    def generate(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the clean latents that the student sees."""
        x_s, s = self.start(batch)
        return self.predict_x0(student, x_s, s, batch.condition, self.guidance_min)
