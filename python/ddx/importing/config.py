"""The settings of `ddx import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Make a student folder of weights that others published."""

    teacher: str = option("sana-600m", "teacher that the weights were distilled from", metavar="NAME|PATH")
    out: Path | None = option(None, "folder of the student (none: a new one in the workspace)", metavar="PATH")
    entry: str | None = option(None, "entry of the file that holds the weights, such as ema", metavar="NAME")
    sampler: str = option(
        "consistency",
        "how the student draws in several steps; consistency: with fresh noise; ode: along its prediction",
        choices=("consistency", "ode"),
    )
    first_timestep: int | None = option(
        None, "timestep at which drawing starts, for teachers with timesteps (none: the last)", example=625
    )
    first_sigma: float | None = option(
        None, "noise level at which drawing starts, for flow teachers (none: 1)", example=1.0
    )
    guidance: float | None = option(
        None, "guidance in the weights, or the one to fold in if they take guidance as an input", example=7.5
    )
    max_steps: int = option(4, "most steps that the student was made for")
    lora_scale: float = option(1.0, "factor on a LoRA before it is merged")
    dtype: str = option(
        "auto", "dtype of the saved student (auto: as in the file)", choices=("auto", "float32", "bf16", "fp16")
    )

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise UsageError(f"max_steps = {self.max_steps} must be at least 1", hint="--max-steps 4")
        if self.first_sigma is not None and not 0.0 < self.first_sigma <= 1.0:
            raise UsageError(f"first_sigma = {self.first_sigma} is not in (0, 1]", hint="leave --first-sigma away")
        if self.first_timestep is not None and self.first_timestep < 1:
            raise UsageError(
                f"first_timestep = {self.first_timestep} must be at least 1", hint="for example --first-timestep 625"
            )
