"""`ddx average`: one student of several."""

from __future__ import annotations

from pathlib import Path

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.export.config import AverageConfig


@click.command(
    epilog="""\b
Examples:
  ddx average sana-600m-dmd2 sana-600m-dmd2-2
  ddx average runs/students/A runs/students/A/averages/half-life-20000 --weights 2,1
"""
)
@click.argument(
    "students", nargs=-1, metavar="STUDENT...", type=click.Path(path_type=Path), shell_complete=suggestions.students
)
@config_options(AverageConfig)
def command(invocation: Invocation, students: tuple[Path, ...]) -> None:
    """Average the weights of several students.

    They are students of one teacher that began with the same weights: seeds, methods or stages after one student. Their
    average is often more correct than each of them, and less varied. It is drawn as the first of them is.
    """
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.export.average import average, plan

    config = invocation.build(AverageConfig)
    if invocation.dry_run:
        found, shares, out = plan(students, config, invocation.workspace)
        of = {str(student.folder): round(share, 4) for student, share in zip(found, shares, strict=True)}
        emit_settings({"out": out, "average_of": of}, as_json=invocation.as_json)
        return
    out = average(students, config, workspace=invocation.workspace, progress=invocation.progress)
    emit_json({"student": str(out)}) if invocation.as_json else emit(str(out))
