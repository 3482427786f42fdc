"""`ddx evaluate`: score a teacher and its students."""

from __future__ import annotations

from typing import Any

import click

from ddx.cli.options import Invocation, config_options
from ddx.evaluation.config import EvaluateConfig


@click.command(
    epilog="""\b
Example:
  ddx evaluate
  ddx evaluate --teacher sana-tiny --guidance 1,3,4.5 --steps 1,2,4 --json
"""
)
@config_options(EvaluateConfig)
def command(invocation: Invocation) -> int:
    """Score a teacher and its students.

    Both draw the same prompts from the same noise. The table has the marks of the exact checker (for generated scenes),
    Fréchet distance, precision and recall in a fixed feature space, diversity, and seconds per picture. The command
    keeps the teacher's pictures for the next evaluation, and adds the scores to the student's model card.
    """
    from ddx.cli.console import emit, emit_json

    config = invocation.build(EvaluateConfig)
    if invocation.dry_run:
        return _dry_run(invocation, config)
    invocation.loading(
        f"the student {config.student}"
        if config.student
        else f"the teacher {config.teacher}"
        if config.teacher
        else "the newest student"
    )
    from ddx.evaluation.evaluate import evaluate

    result = evaluate(config, invocation.workspace, invocation.progress)
    if invocation.as_json:
        emit_json(result.to_dict())
        return 0
    emit_scores(result.rows)
    emit(f"\nreport  {result.report}\npage    {result.page}")
    return 0


def emit_scores(rows: list[dict[str, Any]]) -> None:
    """Print the scores of an evaluation as a table."""
    from ddx.cli.console import emit_table
    from ddx.metrics.table import shown_metrics

    shown = shown_metrics(rows)
    headers = ["model", "steps", *(metric.title for metric in shown)]
    emit_table(headers, [[row["model"], row["steps"], *(row[metric.name] for metric in shown)] for row in rows])


def _dry_run(invocation: Invocation, config: EvaluateConfig) -> int:
    from ddx.cli.console import emit_settings
    from ddx.config import to_dict
    from ddx.sampling.run import choose_student
    from ddx.teachers.samplers.names import SAMPLERS

    alone = config.student is None and config.teacher is not None
    student = None if alone else str(choose_student(config.student, invocation.workspace))
    chosen = min(config.diversity_captions, config.num_images)
    pictures = config.num_images + chosen * config.diversity_seeds
    of_teacher = sum(SAMPLERS[config.sampler].passes(steps) for steps in config.teacher_steps)
    passes = 2 * of_teacher * max(len(config.guidance), 1) + sum(config.steps)
    planned = {
        **to_dict(config),
        "student": student or "the newest of this teacher",
        "pictures_per_row": pictures,
        "network_passes": passes * pictures,
    }
    emit_settings(planned, as_json=invocation.as_json)
    return 0
