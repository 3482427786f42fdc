"""The settings of `ddx export`, `ddx average` and `ddx push`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import REQUIRED, option
from ddx.errors import UsageError

FORMATS = ("diffusers", "single-file", "lora", "comfyui")
LOW_RANK = ("lora", "comfyui")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a student in the format of another program."""

    format: str = option(
        REQUIRED,
        "diffusers: a folder; single-file: one checkpoint in the layout of the original; lora: diffusers and peft; "
        "comfyui: ComfyUI and A1111",
        choices=FORMATS,
    )
    rank: int | None = option(
        None, "rank of a LoRA (none: that of the student's own file, 64 for a student without one)", example=64
    )
    steps: int | None = option(
        None, "of a student with other weights for each number of steps: which (none: those of its folder)", example=2
    )
    teacher: str | None = option(
        None, "teacher that a LoRA is the difference to (none: the student's)", metavar="NAME|PATH"
    )
    out: Path | None = option(None, "what to write (none: in the workspace)", metavar="PATH")
    dtype: str = option(
        "auto",
        "dtype of the denoiser, or of a LoRA (auto: as saved); other parts stay as they are",
        choices=("auto", "float32", "bf16", "fp16"),
    )
    device: str = option("auto", "device that cuts a LoRA to its rank (auto: a GPU if present)", metavar="DEVICE")

    def __post_init__(self) -> None:
        for name in ("rank", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value} must be at least 1", hint=f"--{name} 1")
        for name in ("rank", "teacher"):
            if getattr(self, name) is not None and self.format not in LOW_RANK:
                raise UsageError(
                    f"--{name} is for a LoRA, and a {self.format} export holds whole weights",
                    hint=f"leave --{name} away, or give --format lora",
                )


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Average the weights of several students."""

    weights: tuple[float, ...] = option((), "weight of each student (none: equal ones)", metavar="W,W,…")
    out: Path | None = option(None, "folder of the average (none: a new one in the workspace)", metavar="PATH")

    def __post_init__(self) -> None:
        if any(not 0.0 < weight < float("inf") for weight in self.weights):
            raise UsageError(
                f"weights = {','.join(f'{weight:g}' for weight in self.weights)} must all be above 0",
                hint="for example --weights 2,1",
            )


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Put a student on the Hugging Face hub."""

    private: bool = option(False, "make a new repository private; one that exists stays as it is")
    samples: Path | None = option(
        None,
        "folder of `ddx sample` whose pictures the card shows (none: the student's in the workspace)",
        metavar="DIR",
    )
