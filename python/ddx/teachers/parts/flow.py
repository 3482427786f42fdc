"""Flow-matching teachers (Lipman et al. 2022; Liu et al. 2022): x_t = (1 - t) x0 + t eps, v = eps - x0; Euler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddx.process import FlowProcess, PredictionKind
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.hub import read_json

# What a scheduler's config says about the shift of the times.
_SHIFTING = ("time_shift_type", "shift_terminal", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")


class FlowTeacher(Teacher):
    """Predicts the velocity; the shift of its times is what its own scheduler's config says."""

    process: FlowProcess = FlowProcess()
    prediction: PredictionKind = "flow"

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The config of the scheduler that the pipeline came with."""
        config: dict[str, Any] = self._once(
            "scheduler", lambda: read_json(self.folder / "scheduler" / "scheduler_config.json")
        )
        return config

    @property
    def flow_shift(self) -> float:
        """The constant shift of the times, whichever class the scheduler has."""
        config = self.scheduler_config
        return float(config.get("flow_shift", config.get("shift", 1.0)))

    def dynamic_shift(self, latent_shape: tuple[int, ...], num_steps: int) -> float | None:
        """The logarithm mu of the shift, where it depends on the picture's size. Default: linear in its tokens.

        None where the scheduler's config has a constant one.
        """
        config = self.scheduler_config
        if not config.get("use_dynamic_shifting"):
            return None
        base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (most - base)
        return float(self.image_tokens(latent_shape) * slope + (low - slope * base))

    def image_tokens(self, latent_shape: tuple[int, ...]) -> int:
        """The tokens that the denoiser makes of a picture."""
        _, height, width = latent_shape
        return height * width // self.patch_size**2

    def sampling_scheduler(self, num_steps: int, latent_shape: tuple[int, ...]) -> tuple[Any, Tensor]:
        """Euler on equal steps of the shifted time, the last one down to zero.

        The steps are given as sigmas: the scheduler's own grid ends at its smallest sigma and wastes a step.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        sigmas = self.sampling_sigmas(num_steps)
        mu = self.dynamic_shift(latent_shape, num_steps)
        if mu is None:
            scheduler = FlowMatchEulerDiscreteScheduler(shift=self.flow_shift)
            scheduler.set_timesteps(sigmas=sigmas, device=self.device)
        else:
            config = {key: self.scheduler_config[key] for key in _SHIFTING if key in self.scheduler_config}
            if num_steps == 1:
                config.pop("shift_terminal", None)  # the first time stays 1, so one step has no last one to move
            scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)
            scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self.device)
        return scheduler, scheduler.timesteps.double() / self.process.num_train_timesteps

    def sampling_sigmas(self, num_steps: int) -> list[float]:
        """The unshifted times that the family's pipeline gives its scheduler: here 1, (n - 1) / n, ..., 1 / n."""
        return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1].tolist()

    def student_scheduler(self, sampler: Sampler = "consistency") -> Any:
        """``x0 = x - sigma v``, then fresh noise at the next sigma, or Euler. Called with explicit ``sigmas``.

        Its shift must stay 1: it would be applied to the given sigmas as well.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

        kind = FlowMatchLCMScheduler if sampler == "consistency" else FlowMatchEulerDiscreteScheduler
        return kind(num_train_timesteps=self.process.num_train_timesteps, shift=1.0)

    def times(self, t: Tensor, x_t: Tensor) -> Tensor:
        """Flow times as the network takes them, float32 ``[B]``: t itself, which diffusers multiplies by 1000."""
        return t.expand(len(x_t)).to(device=x_t.device, dtype=torch.float32)
