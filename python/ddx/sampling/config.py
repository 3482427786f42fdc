"""The settings of `ddx sample`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.errors import UsageError
from ddx.teachers.samplers.names import ANALYTIC, NAMES, OWN
from ddx.teachers.size import Size, pixels_of


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Draw pictures with a student, or with a teacher."""

    steps: int = option(1, "network evaluations per picture; of a teacher 20 where none are given")
    student: Path | None = option(None, "student to draw with (none: the newest)", metavar="PATH")
    teacher: str | None = option(None, "teacher to draw with, by its own pipeline", metavar="NAME|PATH")
    sampler: str = option(OWN, "sampler of a teacher (own: that of its pipeline); docs/teachers.md", choices=NAMES)
    data: Path | None = option(
        None, "store whose latents give analytic-dpm its variances (none: the teacher's newest)", metavar="STORE"
    )
    prompt: tuple[str, ...] = option((), "prompt to draw; may be repeated", metavar="TEXT")
    prompts: Path | None = option(
        None, "file with one prompt per line (none: the teacher's standard prompts)", metavar="FILE"
    )
    num_images: int = option(1, "pictures per prompt; each picture raises the seed by one")
    seed: int = option(0, "seed of the first picture of each prompt")
    guidance: float | None = option(
        None, "guidance scale to fold into the student, or of the teacher (none: its own)", example=4.5
    )
    resolution: int | None = option(
        None,
        "side of a picture in pixels (none: that of the training, or its buckets in turns)",
        example=512,
    )
    size: str | None = option(None, "width and height of a picture in pixels", metavar="WxH", example="768x512")
    batch_size: int | None = option(None, "pictures per batch (none: one by one, exactly as on the model card)")
    memory: str | None = option(
        None, "device memory to draw within: chooses what waits on the host", metavar="SIZE", example="400MB"
    )
    quantize: str | None = option(
        None, "store the denoiser's weights in 8 bits, beside --memory; changes pictures", choices=("fp8",)
    )
    out: Path | None = option(None, "folder of the pictures (none: in the workspace)", metavar="PATH")
    device: str = option("auto", "device to compute on (auto: a GPU if present)", metavar="DEVICE")
    dtype: str = option(
        "auto", "dtype of the computation (auto: as saved)", choices=("auto", "float32", "bf16", "fp16")
    )

    def __post_init__(self) -> None:
        for name in ("steps", "num_images", "batch_size", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value} must be at least 1", hint=f"--{name.replace('_', '-')} 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed = {self.seed} must be a whole number from 0", hint="--seed 0")
        if self.prompt and self.prompts:
            raise UsageError("--prompt and --prompts together", hint="give one of them")
        if self.teacher is not None and self.student is not None:
            raise UsageError("--teacher and --student together", hint="give one of them")
        if self.sampler != OWN and self.teacher is None:
            raise UsageError(
                f"sampler = {self.sampler} is of a teacher, and a student draws", hint="add --teacher, or leave it away"
            )
        if self.sampler == ANALYTIC and self.memory is not None:
            raise UsageError(
                f"sampler = {ANALYTIC} measures the whole network, and --memory keeps parts of it on the host",
                hint="leave one of them away",
            )
        if self.quantize is not None and self.memory is None:
            raise UsageError(f"--quantize {self.quantize} without --memory", hint="--memory 8GB")
        pixels_of(self.resolution, self.size)

    @property
    def pixels(self) -> Size | None:
        """The size that was asked for, None for that of the training."""
        return pixels_of(self.resolution, self.size)
