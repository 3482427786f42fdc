"""`ddx demo`: scenes, precompute, distill, sample and evaluate on the bundled teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ddx.cli.invocation import Invocation, find_config
from ddx.cli.options import config_options


@click.command(
    epilog="""\b
Example:
  ddx demo
"""
)
@click.option("--again", is_flag=True, help="Run all stages again, also finished ones.")
@config_options()
def command(invocation: Invocation, again: bool) -> None:
    """Distil the bundled teacher, and show the pictures and scores.

    The demo writes a captioned data set, encodes it, distils sana-tiny with LCM and then with Diff-Instruct, draws with
    the one-step student, and scores it beside its teacher. It takes minutes on two cores, needs no network, and skips
    finished stages.
    """
    from ddx.cli.console import duration, emit, emit_json
    from ddx.cli.evaluate import emit_scores
    from ddx.cli.pipeline import Runner, read_pipeline

    root = invocation.workspace.root
    runner = Runner(
        invocation.workspace,
        "demo",
        as_json=invocation.as_json,
        quiet=invocation.quiet,
        debug=invocation.debug,
        again=again,
    )
    stages = runner.resolve(read_pipeline(find_config("demo"), workspace=root))
    if invocation.dry_run:
        for stage in stages:
            emit(stage.command_line())
        return
    results = runner.run(stages)
    evaluation = results[-1]["result"]
    rows, seconds = evaluation["rows"], dict.fromkeys((stage.name for stage in stages), 0.0)
    for result in results:  # the two of distill together
        seconds[result["stage"]] += result["seconds"]
    ratios = compare(rows)
    if invocation.as_json:
        emit_json({"rows": rows, "ratios": ratios, "seconds": seconds, "page": evaluation.get("page")})
        return
    emit("")
    emit_scores(rows)
    emit("")
    emit(f"The one-step student scores {ratios['of_teacher_20']:.2f} of its teacher's 20 steps,")
    emit(f"and {ratios['of_teacher_1']:.1f} times what the teacher itself reaches in one step.")
    emit("Time: " + ", ".join(f"{stage} {duration(taken)}" for stage, taken in seconds.items()))
    if evaluation.get("page"):
        emit(f"Teacher and student side by side: {Path(evaluation['page']).resolve()}")


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the one-step student's overall score over the teacher's at 20 steps, and over the teacher's at one."""

    overall = {(row["model"], row["steps"]): float(row["overall"]) for row in rows}
    student, best, alone = overall["student", 1], overall["teacher", 20], overall["teacher", 1]
    return {
        "of_teacher_20": student / best if best else float("nan"),
        "of_teacher_1": student / alone if alone else float("inf"),
    }
