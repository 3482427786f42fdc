"""`ddx inspect`: show what a store, a student or a teacher is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddx.cli.options import Invocation, config_options


@click.command(
    epilog="""\b
Example:
  ddx inspect runs/data/laion-sana-600m-512.zarr
  ddx inspect sana-tiny --json
"""
)
@click.argument("what", metavar="STORE|STUDENT|TEACHER")
@config_options(dry_run=False)
def command(invocation: Invocation, what: str) -> int:
    """Show what a store holds.

    For a store: its rows by status, whether it is complete, its teacher and sizes. For a student's folder: its record.
    For a teacher's name: what is known without its weights.
    """
    from ddx.cli.console import emit, emit_json

    found = look(what)
    if invocation.as_json:
        emit_json(found)
    else:
        for line in lines(found):
            emit(line)
    return 0


def look(what: str) -> dict[str, Any]:
    """Return what is known of a store, a student or a teacher. UsageError when it is none of them."""
    from dataclasses import asdict

    from ddx.errors import UsageError
    from ddx.run_record import read_run
    from ddx.teachers.registry import TEACHERS

    path = Path(what).expanduser()
    if (path / "zarr.json").is_file():
        from ddx.data.store import Store

        return Store(path).summary()
    record = read_run(path)
    if record is not None:
        return {"path": str(path), **record}
    if what in TEACHERS:
        return asdict(TEACHERS[what])
    raise UsageError(
        f"{what} is neither a store nor a student nor a teacher",
        hint="`ddx list stores`, `ddx list students` and `ddx list teachers` show what there is",
    )


def lines(found: dict[str, Any], indent: str = "") -> list[str]:
    """Return `key: value` lines, nested mappings indented, byte counts in words."""
    shown = []
    for key, value in found.items():
        if isinstance(value, dict):
            inner = {name: size(num) for name, num in value.items()} if key == "bytes" else value
            shown.append(f"{indent}{key}:{'' if inner else ' none'}")
            shown += lines(inner, indent + "  ")
        else:
            shown.append(f"{indent}{key}: {value}")
    return shown


def size(num_bytes: int) -> str:
    """Return a number of bytes as people say it."""
    value, units = float(num_bytes), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while value >= 1000 and unit != "PB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
