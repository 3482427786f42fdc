"""`ddx run`: run several stages from one YAML file, and skip finished ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation, find_config
from ddx.cli.options import config_options


@click.command(
    epilog="""\b
Example, with a pipeline.yaml such as
  stages:
    - scenes: {out: pairs.parquet, rows: 4096}
    - precompute: {sources: [pairs.parquet], teacher: sana-tiny}
    - distill: {method: lcm, teacher: sana-tiny}
    - sample: {steps: 1}
\b
  ddx run pipeline.yaml --dry-run
"""
)
@click.argument("pipeline", metavar="PIPELINE.yaml", shell_complete=suggestions.configs)
@click.option("--again", is_flag=True, help="Run all stages again, also finished ones.")
@config_options()
def command(invocation: Invocation, pipeline: str, again: bool) -> None:
    """Run the stages of a YAML file, and skip finished ones.

    Each stage is a command with its options as keys. By default a distill stage reads the store of the last precompute
    stage, and sample and evaluate use the last student. Stages after a prepare stage use the prepared teacher.
    `from_student: "{student}"` starts a distill stage from the weights of the last student, `"{student 1}"` from those
    of the first one. An average stage has a list of such `students`.
    """
    from ddx.cli.console import emit, emit_json
    from ddx.cli.pipeline import Runner, read_pipeline
    from ddx.cli.pipeline_check import check

    path = find_config(pipeline)
    runner = Runner(
        invocation.workspace,
        path.stem,
        as_json=invocation.as_json,
        quiet=invocation.quiet,
        debug=invocation.debug,
        again=again,
    )
    stages = runner.resolve(read_pipeline(path, workspace=invocation.workspace.root))
    if any(stage.name in ("prepare", "distill") for stage in stages):
        invocation.loading("the methods")  # their settings, which are checked here, need torch
    check(stages, invocation.workspace)
    if invocation.dry_run:
        lines = [{"stage": s.name, "done": runner.is_done(s), "command": s.command_line()} for s in stages]
        if invocation.as_json:
            emit_json({"stages": lines})
        else:
            for line in lines:
                emit(f"{'done   ' if line['done'] else 'to do  '} {line['command']}")
        return
    results = runner.run(stages)
    if invocation.as_json:
        emit_json({"stages": results})
        return
    for result in results:
        emit(f"{result['stage']:<10}  {made(result)}{'  (done before)' if result['skipped'] else ''}")


# What each command's JSON calls the thing that one opens next.
MADE = {
    **{"scenes": "path", "train": "teacher", "precompute": "store", "prepare": "teacher", "distill": "student"},
    **{"average": "student", "sample": "page", "evaluate": "page"},
}


def made(result: Mapping[str, Any]) -> str:
    """Return the file or folder that a stage made: a store, a student, a page of pictures or of scores."""
    answer = result.get("result") or {}
    return str(answer.get(MADE[result["stage"]]) or result.get("output"))
