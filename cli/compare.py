"""`ddx compare`: several students, or several reports, in one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ddx.cli import suggestions
from ddx.cli.evaluate import CONFIGS, emit_scores, protocol_settings, run_real
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.cli.sweep import combinations, split_sweep
from ddx.errors import UsageError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.measure_config import MeasureConfig


@click.command(
    epilog="""\b
Example:
  ddx compare runs/students/a runs/students/b --steps 1,2
  ddx compare a b --reference val2017 --metrics fid,clipscore --prompts captions.txt --guidance 1,2,4.5
  ddx compare runs/reports/a runs/reports/b
"""
)
@click.argument(
    "students",
    nargs=-1,
    metavar="STUDENT|REPORT...",
    type=click.Path(path_type=Path),
    shell_complete=suggestions.students,
)
@config_options(EvaluateConfig, MeasureConfig)
def command(invocation: Invocation, students: tuple[Path, ...]) -> int:
    """Put several students, or several reports, into one table.

    Students draw the same prompts from the same seeds, and pictures that are there already are not drawn again. The
    options are those of `ddx evaluate`: with --reference it compares with real pictures, and writes curves and pictures
    side by side to one page.

    Reports are read and not measured again. Where two of them are not comparable, it says which field of the protocol
    differs.
    """
    from ddx.evaluation.comparing import report_path

    if not students:
        raise UsageError("there is nothing to compare", hint="name students, or folders of reports")
    reports = [report_path(path) for path in students]
    if all(reports):
        return _reports(invocation, [path for path in reports if path])
    if any(reports):
        raise UsageError("reports and students together", hint="name either, or evaluate the student first")
    invocation, varied = split_sweep(invocation, *CONFIGS)
    more = protocol_settings(invocation)
    config, measure, _ = invocation.build_many(*CONFIGS, **more)
    if measure.asked or varied:
        return run_real(invocation, [dict(one) for one in combinations(varied)], more, students)
    return _own_space(invocation, config, students)


def _own_space(invocation: Invocation, config: EvaluateConfig, students: tuple[Path, ...]) -> int:
    """Evaluate one after another in ddx's own feature space, with one teacher's pictures for all."""
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.config import to_dict
    from ddx.workspace import slug

    if invocation.dry_run:
        emit_settings({**to_dict(config), "students": [str(path) for path in students]}, as_json=invocation.as_json)
        return 0
    invocation.loading(f"the student {students[0]}")
    from ddx.evaluation.evaluate import evaluate

    rows: list[dict[str, Any]] = []
    paths: list[str] = []
    for student in students:
        out = None if config.out is None else config.out / slug(student.name)
        result = evaluate(
            dataclasses.replace(config, student=student, out=out), invocation.workspace, invocation.progress
        )
        own = [{**row, "model": student.name if row["model"] == "student" else row["model"]} for row in result.rows]
        rows += [row for row in own if row["model"] != "teacher" or row not in rows]
        paths.append(str(result.report))
    if invocation.as_json:
        emit_json({"rows": rows, "reports": paths})
        return 0
    emit_scores(rows)
    emit("")
    for path in paths:
        emit(f"report  {path}")
    return 0


def _reports(invocation: Invocation, paths: list[Path]) -> int:
    from ddx.cli.console import emit, emit_json, emit_table
    from ddx.evaluation.comparing import compare_reports

    found = compare_reports(paths)
    if invocation.as_json:
        emit_json({"rows": found.rows, "differences": found.differences})
        return 0
    rows = [
        [Path(row["report"]).parent.name, row["model"], row["steps"], row.get("guidance"), *map(row.get, found.metrics)]
        for row in found.rows
    ]
    emit_table(["report", "model", "steps", "guidance", *found.metrics], rows)
    emit("")
    for sentence in found.differences or ["the protocols agree: these numbers are comparable"]:
        emit(sentence)
    return 0
