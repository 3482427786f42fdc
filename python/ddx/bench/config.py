"""The settings of `ddx bench kernels` and `ddx bench step`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class KernelsConfig:
    """Check and time the kernels on this machine's GPU; without one, the torch path on the processor."""

    operation: tuple[str, ...] = option((), "operation to measure; may be repeated (none: all)", metavar="NAME")
    tune: bool = option(False, "try all launch configurations, and rewrite this GPU's part of kernels/tuned.json")
    ahead: str | None = option(
        None, "compile for this GPU capability and show registers; needs no GPU", choices=("80", "90")
    )
    compile: bool | None = option(None, "time torch.compile of stock too (none: on a GPU, not on a processor)")
    minutes: float = option(8.0, "start nothing new after this many minutes")
    out: Path | None = option(
        None,
        "file of the results (none: in the workspace); with --tune, of the table (none: in the package)",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if self.tune and self.ahead:
            raise UsageError("--tune runs on a GPU, and --ahead compiles without one", hint="leave one of them out")
        if self.minutes <= 0:
            raise UsageError(f"minutes = {self.minutes} must be more than 0", hint="--minutes 8")


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Time whole training steps of SANA-600M with random weights; without a GPU, of a tiny model."""

    method: tuple[str, ...] = option(
        (), "method to time; may be repeated (none: all)", metavar="NAME", choices=("lcm", "scm", "sid")
    )
    resolution: tuple[int, ...] = option((512, 1024), "side of a picture in pixels, a multiple of 32; may be repeated")
    batch_size: int = option(16, "pictures per step")
    steps: int = option(10, "steps to time; the median counts")
    compile: bool | None = option(None, "time torch.compile of stock too (none: on a GPU, not on a processor)")
    minutes: float = option(9.0, "start nothing new after this many minutes")
    out: Path | None = option(None, "file of the results (none: in the workspace)", metavar="FILE")

    def __post_init__(self) -> None:
        if any(resolution <= 0 or resolution % 32 for resolution in self.resolution):
            raise UsageError(f"resolutions must be multiples of 32, got {self.resolution}", hint="--resolution 512")
        if min(self.batch_size, self.steps) < 1 or self.minutes <= 0:
            raise UsageError("batch-size, steps and minutes must be more than 0")
