"""`metrics.jsonl`: one line every few steps, appended; a resumed run cuts off what it will do again."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddx.json_lines import add_line, keep_lines, read_steps

if TYPE_CHECKING:
    from ddx.training.trackers.follow import Trackers

FILE_NAME = "metrics.jsonl"


class Metrics:
    """The metrics file of one run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.trackers: Trackers | None = None  # that are told of every line, and of every picture

    def resume(self, step: int) -> float:
        """Drop the lines after `step`, a torn last one included; return the seconds that the run had taken by then."""
        lines = [line for line in read_steps(self.path) if line["step"] <= step]
        keep_lines(self.path, lines)
        return max((float(line["seconds"]) for line in lines if "seconds" in line), default=0.0)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        add_line(self.path, line)
        if self.trackers is not None:
            self.trackers.line(line)

    def show(self, step: int, name: str, path: Path) -> None:
        """Tell the trackers of a picture; the file of lines has none."""
        if self.trackers is not None:
            self.trackers.picture(step, name, path)

    def look(self, look: Mapping[str, Any], strip: Path) -> None:
        """Tell the trackers of a look of the watch: its numbers under `watch/`, and its pictures."""
        if self.trackers is not None:
            drawn = look["student"][str(look["judged_steps"])]
            values = {**drawn, "ode_distance": look.get("ode_distance"), "alarms": len(look["alarms"])}
            self.trackers.line({"step": look["step"], **{f"watch/{name}": value for name, value in values.items()}})
            self.trackers.picture(int(look["step"]), "watch", strip)

    def weights(self, step: int, path: Path) -> None:
        """Tell the trackers of the file that holds the weights of the best step."""
        if self.trackers is not None:
            self.trackers.weights(step, path)

    @contextmanager
    def tracked(self, trackers: Trackers) -> Iterator[None]:
        """Within, the trackers follow; at its end they are closed, as finished unless something was raised."""
        self.trackers, finished = trackers, False
        try:
            yield
            finished = True
        finally:
            self.trackers = None
            trackers.close(finished=finished)


class Clock:
    """Seconds of a run over all its sittings, and its rate in images since the last reading."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._start = time.monotonic() - seconds_before
        self._last = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds that the run has taken."""
        return time.monotonic() - self._start

    def rate(self, num_images: int) -> float:
        """Return images a second since the last call."""
        now = time.monotonic()
        rate, self._last = num_images / max(now - self._last, 1e-9), now
        return rate

    def pause(self) -> _Pause:
        """Return a context whose time does not count for the rate, such as drawing samples."""
        return _Pause(self)

    def shift_rate(self, seconds: float) -> None:
        """Leave `seconds` out of the next rate."""
        self._last += seconds


class _Pause:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.clock.shift_rate(time.monotonic() - self.since)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory so far: of the GPU's allocator, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
