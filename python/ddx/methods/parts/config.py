"""Settings that methods share. A method's own ones stand in its file, as a subclass of these."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ddx.config import option
from ddx.errors import UsageError

PAIRS = ("solved", "stored")
TIME_SAMPLING = ("uniform", "logit-normal", "log-normal", "shifted", "grid", "set")


def changed(config: type[Any], name: str, default: Any) -> Any:
    """Return the field `name` of `config` with another default, for a subclass in whose paper it is another."""
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    return dataclasses.field(default=default, metadata=dict(field.metadata))


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """At which guidance a student draws: one fixed scale, or a range of them that it takes as an input."""

    guidance_min: float | None = option(None, "lowest guidance to train (none: the teacher's default)")
    guidance_max: float | None = option(None, "highest guidance to train (none: the teacher's default)")
    export_guidance: float | None = option(None, "guidance of the exported student (none: the teacher's default)")

    def __post_init__(self) -> None:
        low, high = self.guidance_min, self.guidance_max
        if low is not None and high is not None and low > high:
            raise UsageError(
                f"guidance_min = {low} is above guidance_max = {high}",
                hint="give both the same value for a fixed guidance",
            )


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """How the times of a loss are drawn, in flow time: sigma / (alpha + sigma), 1 is noise."""

    time_sampling: str = option("uniform", "distribution of the times", choices=TIME_SAMPLING)
    time_mean: float = option(0.0, "mean of log(sigma / alpha), of logit-normal and log-normal times")
    time_std: float = option(1.0, "standard deviation of log(sigma / alpha)")
    time_shift: float = option(3.0, "shift k of the shifted times; values above 1 favour noise")
    time_levels: int = option(4, "number of levels, for time_sampling grid")
    time_set: tuple[float, ...] = option((1.0, 0.75, 0.5, 0.25), "the times, for time_sampling set", metavar="T,T,…")
    time_adaptive: bool = option(False, "draw times more often where the loss is large, with importance weights")

    def __post_init__(self) -> None:
        above_zero(self, "time_std", "time_shift")
        at_least(self, 1, "time_levels")
        if not self.time_set or not all(0.0 < t <= 1.0 for t in self.time_set):
            raise UsageError(f"time_set = {self.time_set} is not in (0, 1]", hint="--time-set 1,0.75,0.5,0.25")


@dataclass(frozen=True, kw_only=True)
class FlowConfig(GuidanceConfig, TimeConfig):
    """What every method that sees its teacher as flow matching has."""

    student_times: tuple[float, ...] = option(
        (),
        "flow times that the student draws at, the first is the start (none: the method's, most often equal steps). "
        "They are for as many steps as there are times; other numbers take equal steps from the same start",
        metavar="T,T,…",
    )

    def __post_init__(self) -> None:
        GuidanceConfig.__post_init__(self)
        TimeConfig.__post_init__(self)
        times = self.student_times
        if not all(1.0 >= t > r > 0.0 for t, r in pairwise((*times, 1e-9))):
            raise UsageError(
                f"student_times = {times} do not fall from at most 1 to above 0", hint="--student-times 1.0,0.783"
            )


def check_num_times(config: Any) -> None:
    """Raise UsageError where a method that trains `num_steps` steps was given another number of `student_times`."""
    number = len(config.student_times)
    if number and number != config.num_steps:
        raise UsageError(
            f"student_times = {config.student_times} are {number} steps, and num_steps = {config.num_steps}",
            hint=f"--num-steps {number}",
        )


@dataclass(frozen=True, kw_only=True)
class VelocityConfig(FlowConfig):
    """What every method has that can follow its teacher or its data."""

    velocity_from: str = option(
        "teacher",
        "velocity along the path: the teacher's with guidance (distillation), or the data's (training)",
        choices=("teacher", "data"),
    )


def at_least(config: Any, least: float, *names: str) -> None:
    """Raise UsageError for the first of these fields that is below `least` (None passes)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise UsageError(
                f"{name} = {value} must be at least {least}", hint=f"--{name.replace('_', '-')} {least} or more"
            )


def above_zero(config: Any, *names: str) -> None:
    """Raise UsageError for the first of these fields that is not above 0 (None passes)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0.0:
            raise UsageError(f"{name} = {value} must be above 0", hint=f"leave {name} away for its default")


def within(config: Any, low: float, high: float, *names: str, open_end: bool = False) -> None:
    """Raise UsageError for the first of these fields that is not in [low, high], or [low, high) with `open_end`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (low <= value < high or (value == high and not open_end)):
            bracket = ")" if open_end else "]"
            raise UsageError(f"{name} = {value} is not in [{low:g}, {high:g}{bracket}", hint=f"leave {name} away")
