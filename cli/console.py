"""Results on stdout, remarks on stderr, and how numbers are said."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click

WIDEST = 120  # columns
LONG_LIST = 16  # of a longer one the ends are shown
LONG_VALUE = 16  # characters: a longer one does not widen the table's column


def terminal_width() -> int:
    """Return the columns that text may take: the terminal's, at most 120."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)


def emit(text: str) -> None:
    """Print a result on stdout."""
    click.echo(text)


def emit_settings(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print names and values on stdout, one a line and spelled as `--set` takes them, or all as JSON."""
    if as_json:
        emit_json(values)
        return
    for name, value in values.items():
        emit(f"{name}: {as_set(value)}")


def emit_origins(values: Mapping[str, Any], origins: Mapping[str, str], *, width: int) -> None:
    """Print each setting, its value as `--set` takes it, and where it is from, in columns that fit `width` characters.

    A long value takes a line of its own, and what does not fit behind it is wrapped.
    """
    texts = {name: as_set(value) for name, value in values.items()}
    first = max(map(len, ("setting", *texts)))
    second = min(max(map(len, ("value", *texts.values()))), LONG_VALUE)
    room = max(20, width - first - second - 4)
    emit(f"{'setting':{first}}  {'value':{second}}  where it is from".rstrip())
    emit(f"{'─' * first}  {'─' * second}  {'─' * room}")
    for name, text in texts.items():
        lines = textwrap.wrap(origins[name], room, break_on_hyphens=False) or [""]
        head = f"{name:{first}}  {text:{second}}"
        if len(text) > second:
            emit(head)
            head = " " * (first + second + 2)
        for line in lines:
            emit(f"{head}  {line}".rstrip())
            head = " " * (first + second + 2)


def as_set(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={as_set(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        texts = [f"{item:g}" if isinstance(item, float) else str(item) for item in value]
        if len(texts) > LONG_LIST:
            texts = [*texts[:3], "…", f"{texts[-1]} ({len(texts)} in all)"]
        return ",".join(texts)
    return str(value)


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
