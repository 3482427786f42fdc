"""The settings of `ddx evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.errors import UsageError
from ddx.teachers.samplers.names import NAMES, OWN
from ddx.teachers.size import Size, pixels_of


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a teacher and a student on the same prompts and seeds."""

    teacher: str | None = option(None, "teacher to compare with (none: the student's)", metavar="NAME|PATH")
    student: Path | None = option(None, "student to score (none: the newest)", metavar="PATH")
    steps: tuple[int, ...] = option((1, 2, 4), "step counts of the student", metavar="N,N,…")
    teacher_steps: tuple[int, ...] = option((20, 4, 2, 1), "step counts of the teacher", metavar="N,N,…")
    sampler: str = option(
        OWN, "sampler of the teacher (own: its family's deterministic one); docs/teachers.md", choices=NAMES
    )
    data: Path | None = option(
        None, "store whose latents give analytic-dpm its variances (none: the teacher's newest)", metavar="STORE"
    )
    guidance: tuple[float, ...] = option(
        (), "guidance scales of the teacher; each step count keeps the best (none: its default)", metavar="S,S,…"
    )
    prompts: Path | None = option(
        None, "file with one prompt per line (none: held-out scenes, or the teacher's standard prompts)", metavar="FILE"
    )
    num_images: int = option(150, "pictures per row of the table")
    diversity_captions: int = option(2, "prompts drawn many times to measure diversity")
    diversity_seeds: int = option(16, "pictures of each of those prompts")
    neighbours: int = option(3, "k of the nearest neighbours in precision and recall")
    page_prompts: int = option(12, "prompts shown side by side in the report")
    seed: int = option(0, "seed of the prompts and of the noise")
    resolution: int | None = option(
        None, "side of a picture in pixels (none: the student's; of a training in buckets the square)", example=512
    )
    size: str | None = option(None, "width and height of a picture in pixels", metavar="WxH", example="768x512")
    batch_size: int = option(50, "pictures per batch")
    out: Path | None = option(None, "folder of the report (none: in the workspace)", metavar="PATH")
    device: str = option("auto", "device to compute on (auto: a GPU if present)", metavar="DEVICE")
    dtype: str = option(
        "auto", "dtype of the computation (auto: as saved)", choices=("auto", "float32", "bf16", "fp16")
    )

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} = {getattr(self, name)} must be at least {least}", hint=f"{flag} {least}")
        for name in ("steps", "teacher_steps"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} = {list(values)} must be whole numbers from 1", hint=f"{flag} 1,2,4")
        if self.num_images <= self.neighbours:
            raise UsageError(
                f"num_images = {self.num_images} is too few for {self.neighbours} neighbours", hint="--num-images 150"
            )
        pixels_of(self.resolution, self.size)

    @property
    def pixels(self) -> Size | None:
        """The size that was asked for, None for the student's."""
        return pixels_of(self.resolution, self.size)


_LEAST = {"diversity_captions": 1, "diversity_seeds": 2, "neighbours": 1, "page_prompts": 1, "seed": 0, "batch_size": 1}
