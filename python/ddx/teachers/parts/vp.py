"""Variance preserving teachers (DDPM, Ho et al. 2020): the table in the scheduler's config, DDIM, and LCM's sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddx.errors import DdxError
from ddx.process import PredictionKind, VPProcess
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.hub import read_json
from ddx.teachers.parts.betas import vp_process

_KINDS: dict[str, PredictionKind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

# Keys that the schedulers of diffusers share; the rest is each sampler's own.
_TABLE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


class VPTeacher(Teacher):
    """Predicts noise or v, as its scheduler's config says; its network takes whole timesteps."""

    process: VPProcess

    def student_sign(self) -> tuple[str, str] | None:
        """See :meth:`OpenPipeline.student_sign`: a UNet that takes guidance is a latent consistency model's."""
        if self.denoiser_config.get("time_cond_proj_dim") is None:
            return None
        cure = "give the model that it was distilled from; `ddx import` makes a student folder of these weights"
        return "takes guidance (time_cond_proj_dim), as latent consistency models do", cure

    def __init__(self, source: Any, **options: Any) -> None:
        super().__init__(source, **options)
        config = read_json(source.folder / "scheduler" / "scheduler_config.json")
        self.table = {key: config[key] for key in _TABLE_KEYS if config.get(key) is not None}
        kind = self.table.setdefault("prediction_type", "epsilon")
        if kind not in _KINDS:
            raise DdxError(f"{self.name} predicts {kind!r}", hint=f"ddx knows {', '.join(_KINDS)}")
        self.prediction = _KINDS[kind]
        process = vp_process(self.table)
        if process.zero_terminal_snr and self.prediction == "eps":
            raise DdxError(
                f"{self.name} predicts noise on a table of zero terminal SNR, where noise says nothing",
                hint="a table with rescale_betas_zero_snr needs prediction_type v_prediction or sample",
            )
        self.process = process

    def sampling_scheduler(self, num_steps: int, latent_shape: tuple[int, ...]) -> tuple[Any, Tensor]:
        """DDIM without noise from the last timestep down to the clean image.

        Trailing spacing starts where the noise is (Lin et al. 2024); the published configs' leading spacing would
        start a one-step sample at t = 1.
        """
        scheduler = self.student_scheduler("ode")
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler, scheduler.timesteps.double()

    def student_scheduler(self, sampler: Sampler = "consistency") -> Any:
        """Multistep consistency sampling with LCM's boundary scalings (Luo et al. 2023), or DDIM without noise."""
        from diffusers import DDIMScheduler, LCMScheduler

        if sampler == "ode":
            return DDIMScheduler(
                **self.table, clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing"
            )
        return LCMScheduler(
            **self.table,
            original_inference_steps=min(50, self.process.num_train_timesteps),
            timestep_scaling=10.0,
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,  # what the pipelines want; this scheduler does not read it
        )

    def timesteps(self, t: Tensor, x_t: Tensor) -> Tensor:
        """The times as the network takes them, float32 ``[B]``."""
        return self.process.model_time(t).expand(len(x_t)).to(device=x_t.device, dtype=torch.float32)
