"""What the terminal shows: results on stdout, progress on stderr; bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ddx.progress import NullProgress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from ddx.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


def emit(text: str) -> None:
    """Print a result on stdout."""
    click.echo(text)


def emit_settings(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values on stdout, one a line and spelled as `--set` takes them, or all as JSON."""
    if as_json:
        emit_json(values)
        return
    for name, value in values.items():
        emit(f"{name}: {_as_set(value)}")


def _as_set(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def emit_json(value: Any) -> None:
    """Print a result as JSON on stdout; nothing else may go there."""
    click.echo(json.dumps(value, indent=2, default=str))


def note(message: str) -> None:
    """Print a remark on stderr."""
    click.echo(message, err=True)


def emit_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in aligned columns on stdout; numbers are aligned to the right, None is an en dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(str(text)) for text in column) for column in zip(headers, *cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(headers))]

    def line(texts: Sequence[str]) -> str:
        padded = [t.rjust(w) if right else t.ljust(w) for t, w, right in zip(texts, widths, numeric, strict=True)]
        return "  ".join(padded).rstrip()

    emit(line(headers))
    emit("  ".join("─" * width for width in widths))
    for row in cells:
        emit(line(row))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Return a time as people say it: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def make_progress(*, quiet: bool = False) -> Progress:
    """Return the display that fits stderr: none, rich bars on a terminal, plain lines elsewhere."""
    if quiet:
        return NullProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


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
        note(f"{stage}: {f'{total:,} ' if total is not None else ''}{self._unit}")

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
            seconds = time.monotonic() - self._began
            rate = f", {_rate(self._done, seconds)} {self._unit}/s" if self._done else ""
            note(f"{self._stage}: {self._done:,} {self._unit} in {duration(seconds)}{rate}{_shown(self._stats)}")
            self._stage = ""

    def _line(self, now: float) -> str:
        seconds = now - self._began
        rate = f"{_rate(self._done, seconds)} {self._unit}/s"
        if self._total is None or not self._done:
            return f"{self._stage}: {self._done:,} {self._unit}, {rate}{_shown(self._stats)}"
        left = duration(seconds / self._done * max(self._total - self._done, 0))
        return f"{self._stage}: {self._done:,}/{self._total:,} {self._unit}, {rate}, {left} left{_shown(self._stats)}"


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
    return unit if unit.endswith("s") else f"{unit}s"


def _rate(count: float, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _shown(stats: dict[str, float | int | str]) -> str:
    return "".join(f", {k} {v:.4g}" if isinstance(v, float) else f", {k} {v}" for k, v in stats.items())
