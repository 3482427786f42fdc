"""`ddx list`: methods, teachers, stores, students and runs, as the command line names them."""

from __future__ import annotations

from typing import Any

import click

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options

KINDS = ("methods", "teachers", "stores", "students", "runs")
ONLY_IN_JSON = ("source", "licence", "reference", "title")  # too wide for a terminal


@click.command(
    epilog="""\b
Examples:
  ddx list
  ddx list teachers --json
  ddx list runs
"""
)
@click.argument("kind", type=click.Choice(KINDS), required=False)
@config_options(dry_run=False)
def command(invocation: Invocation, kind: str | None) -> None:
    """List methods, teachers, stores, students and runs.

    Runs have their method, steps, pictures, time, memory, the score of their last evaluation, the best step and alarms.
    """
    from ddx.cli.console import emit, emit_json, emit_table

    listed = {name: _LISTS[name](invocation) for name in ((kind,) if kind else KINDS)}
    if invocation.as_json:
        emit_json(listed[kind] if kind else listed)
        return
    for name, rows in listed.items():
        if not kind:
            emit(f"{name}:" if rows else f"{name}: none yet in {invocation.workspace.root}")
        elif not rows:
            emit(f"no {name} in {invocation.workspace.root}")
        if rows:
            rows = _shown(name, rows)
            shown = [key for key in rows[0] if key not in ONLY_IN_JSON]
            emit_table(shown, [[row[key] for key in shown] for row in rows])
        if not kind:
            emit("")


def _methods(invocation: Invocation) -> list[dict[str, Any]]:
    from ddx.methods.registry import METHODS

    cheapest = min(s.relative_cost for s in METHODS.values())
    return [
        {
            "name": s.name,
            "needs": s.data,
            "cost": f"{s.relative_cost / cheapest:.1f}×",
            "bytes a weight": f"{s.memory:.0f}",
            "networks": " ".join(s.networks),
            "paper": f"{s.paper.split(', ')[0]}, {s.paper.split(', ')[-1]}"
            if "arXiv" in s.paper
            else s.paper.split(", ")[0],
            "reference": s.paper,
            "title": s.title,
        }
        for s in METHODS.values()
    ]


def _teachers(invocation: Invocation) -> list[dict[str, Any]]:
    from ddx.teachers.registry import TEACHERS

    return [
        {"name": s.name, "resolution": s.resolution, "source": s.source, "licence": s.licence, "what it is": s.summary}
        for s in TEACHERS.values()
    ]


def _stores(invocation: Invocation) -> list[dict[str, Any]]:
    return [
        {
            "path": str(store.path),
            "teacher": store.record.get("teacher"),
            "resolution": store.record.get("resolution"),
            "rows": store.record.get("rows"),
            "complete": store.finished,
        }
        for store in invocation.workspace.stores()
    ]


def _students(invocation: Invocation) -> list[dict[str, Any]]:
    return [
        {
            "path": str(student.path),
            "teacher": student.record.get("teacher"),
            "method": student.record.get("method"),
            "images seen": student.record.get("images_seen"),
            "finished": student.finished,
        }
        for student in invocation.workspace.students()
    ]


def _runs(invocation: Invocation) -> list[dict[str, Any]]:
    from ddx.cli.list_runs import runs

    return runs(invocation.workspace)


def _shown(kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a list as a terminal has room for them; columns that nobody fills are left out."""
    if kind != "runs":
        return rows
    from ddx.cli.list_runs import shown

    found = [shown(row) for row in rows]
    filled = [key for key in found[0] if key in ("run", "state") or any(row[key] is not None for row in found)]
    return [{key: row[key] for key in filled} for row in found]


_LISTS = {"methods": _methods, "teachers": _teachers, "stores": _stores, "students": _students, "runs": _runs}
