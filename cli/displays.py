"""Progress on stderr: bars on a terminal, plain lines elsewhere, and lines of JSON for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ddx.cli.console import duration, note
from ddx.progress import NullProgress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from ddx.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
_FOR_PEOPLE = ContextVar("for_people", default=False)


def make_progress(*, quiet: bool = False, as_json: bool = False) -> Progress:
    """Return the display that fits stderr: none, rich bars on a terminal, else plain lines, or with --json JSON."""
    if quiet:
        return NullProgress()
    if sys.stderr.isatty():
        return BarProgress()
    return JsonProgress() if as_json and not _FOR_PEOPLE.get() else LineProgress()


@contextmanager
def progress_for_people() -> Iterator[None]:
    """Plain lines in the block, also of a command whose answer as JSON is for its caller in this process."""
    token = _FOR_PEOPLE.set(True)
    try:
        yield
    finally:
        _FOR_PEOPLE.reset(token)


class LineProgress:
    """A line at the start and the end of a stage, and one every ten seconds with rate and time left."""

    def __init__(self) -> None:
        self._stage = ""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Print the stage's name and size."""
        self.finish()
        self._stage, self._total, self._unit = stage, total, _plural(unit)
        self._done, self._stats = 0, dict[str, float | int | str]()
        self._began = self._printed = time.monotonic()
        note(self._first_line())

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        """Count, and print when the last line is old enough."""
        if not self._stage:
            return
        self._done += n
        self._stats.update(stats)
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            note(self._line(now))

    def log(self, message: str) -> None:
        """Print the message."""
        note(message)

    def finish(self) -> None:
        """Print the stage's total, rate and time."""
        if self._stage:
            note(self._last_line(time.monotonic()))
            self._stage = ""

    def _first_line(self) -> str:
        return f"{self._stage}: {f'{self._total:,} ' if self._total is not None else ''}{self._unit}"

    def _last_line(self, now: float) -> str:
        seconds = now - self._began
        rate = f", {_rate(self._done, seconds)} {self._unit}/s" if self._done else ""
        return f"{self._stage}: {self._done:,} {self._unit} in {duration(seconds)}{rate}{_shown(self._stats)}"

    def _line(self, now: float) -> str:
        seconds = now - self._began
        rate = f"{_rate(self._done, seconds)} {self._unit}/s"
        if self._total is None or not self._done:
            return f"{self._stage}: {self._done:,} {self._unit}, {rate}{_shown(self._stats)}"
        left = duration(seconds / self._done * max(self._total - self._done, 0))
        return f"{self._stage}: {self._done:,}/{self._total:,} {self._unit}, {rate}, {left} left{_shown(self._stats)}"


class JsonProgress(LineProgress):
    """The same lines as JSON objects.

    `{"stage", "unit", "done", "total", "seconds", "finished", …}` with the stage's own figures, or `{"log": message}`.
    """

    def log(self, message: str) -> None:
        """Print the message as an object of its own."""
        note(json.dumps({"log": message}, ensure_ascii=False))

    def _first_line(self) -> str:
        return self._line(self._began)

    def _last_line(self, now: float) -> str:
        return self._line(now, finished=True)

    def _line(self, now: float, *, finished: bool = False) -> str:
        known = {"stage": self._stage, "unit": self._unit, "done": self._done, "total": self._total}
        line = {**known, "seconds": round(now - self._began, 3), "finished": finished, **self._stats}
        return json.dumps(line, ensure_ascii=False)


class BarProgress:
    """One rich bar a stage, with rate, time left and the latest figures."""

    def __init__(self) -> None:
        self._bars: Bars | None = None

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Draw a new bar."""
        from rich import progress
        from rich.console import Console

        self.finish()
        self._unit, self._stats = _plural(unit), dict[str, float | int | str]()
        self._bars = progress.Progress(
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[stats]}"),
            console=Console(stderr=True),
        )
        self._began = time.monotonic()
        self._task = self._bars.add_task(stage, total=total, rate=unit, stats="")
        self._bars.start()

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        """Move the bar."""
        if self._bars is None:
            return
        self._stats.update(stats)
        done = self._bars.tasks[0].completed + n
        rate = f"{_rate(done, time.monotonic() - self._began)} {self._unit}/s"
        self._bars.update(self._task, advance=n, rate=rate, stats=_shown(self._stats).removeprefix(", "))

    def log(self, message: str) -> None:
        """Print the message above the bar."""
        if self._bars is None:
            note(message)
        else:
            self._bars.console.print(message, markup=False, highlight=False)

    def finish(self) -> None:
        """Leave the bar as it stands."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _plural(unit: str) -> str:
    return unit if unit.endswith("s") or unit.isupper() else f"{unit}s"


def _rate(count: float, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _shown(stats: dict[str, float | int | str]) -> str:
    return "".join(f", {k} {v:.4g}" if isinstance(v, float) else f", {k} {v}" for k, v in stats.items())
