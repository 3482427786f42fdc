"""`ddx evaluate`: score a teacher and its students."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.cli.sweep import combinations, split_sweep
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.judged.config import JudgeConfig
from ddx.evaluation.measure_config import MeasureConfig

CONFIGS = (EvaluateConfig, MeasureConfig, JudgeConfig)


@click.command(
    epilog="""\b
Example:
  ddx evaluate
  ddx evaluate --teacher sana-tiny --guidance 1,3,4.5 --steps 1,2,4 --json
  ddx evaluate --protocol coco-30k --prompts captions.txt --reference val2014
  ddx evaluate --pictures drawn --reference real --metrics fid,kid
  ddx evaluate --benchmark geneval --prompts evaluation_metadata.jsonl --judge http://localhost:8000/v1 --judge-model M
"""
)
@config_options(EvaluateConfig, MeasureConfig, JudgeConfig)
def command(invocation: Invocation) -> int:
    """Score a teacher and its students.

    Both draw the same prompts from the same noise. The table has the marks of the exact checker (for generated scenes),
    Fréchet distance, precision and recall in a fixed feature space, diversity, and seconds per picture. The command
    keeps the teacher's pictures for the next evaluation, and adds the scores to the student's model card.

    With --reference it compares with real pictures, by the metrics of papers: FID, KID, CLIPScore and others. Drawn
    pictures are kept. Several values of --steps, --guidance and --set KEY=A,B give a row each, and curves.
    --benchmark draws the prompts of GenEval or DPG-Bench, and --judge lets a model look at the pictures.
    docs/evaluate.md leads to a table for a paper.
    """
    from ddx.cli.console import emit, emit_json

    invocation, varied = split_sweep(invocation, *CONFIGS)
    more = protocol_settings(invocation)
    config, measure, judge = invocation.build_many(*CONFIGS, **more)
    if judge.benchmark is not None:
        return _benchmark(invocation, config, judge)
    if measure.asked or varied:
        return run_real(invocation, [dict(one) for one in combinations(varied)], more)
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


def run_real(
    invocation: Invocation, choices: Sequence[dict[str, str]], more: dict[str, Any], students: Sequence[Path] = ()
) -> int:
    """Compare with real pictures: rows for each choice of settings and each student."""
    from ddx.cli.console import emit, emit_json, emit_settings, emit_table
    from ddx.config import to_dict
    from ddx.evaluation.real_rows import Variant

    built = [invocation.build_many(*CONFIGS, **more, **choice) for choice in choices]
    variants = [Variant(config=built[i][0], changed=choice) for i, choice in enumerate(choices)]
    config, measure, _ = built[0]
    if invocation.dry_run:
        rows = len(variants) * max(len(students), 1) * len(config.steps) * max(len(config.guidance), 1)
        planned = {**to_dict(config), **to_dict(measure), "metrics": measure.names, "resize": measure.side}
        pictures = {} if measure.pictures else {"rows": rows, "pictures": rows * config.num_images}
        emit_settings({**planned, **pictures}, as_json=invocation.as_json)
        return 0
    invocation.loading("the metrics' networks" if measure.pictures else "the pipeline")
    from ddx.evaluation.measures import MEASURES
    from ddx.evaluation.real import evaluate_real

    result = evaluate_real(variants, measure, students, invocation.workspace, invocation.progress)
    if invocation.as_json:
        emit_json(result.to_dict())
        return 0
    shown = []
    for row in result.rows:
        cells = [
            MEASURES[name].text(one.value if one else None, one.error if one else None)
            for name, one in ((name, row.estimates.get(name)) for name in result.names)
        ]
        shown.append([row.title, row.count, *cells])
    emit_table(["", "pictures", *(MEASURES[name].title for name in result.names)], shown)
    for line in (*result.notes, *(f"{row.title}: {row.error}" for row in result.rows if row.error)):
        emit(line)
    emit("")
    for name, path in result.paths.items():
        emit(f"{name:<7} {path}")
    return 0


def _benchmark(invocation: Invocation, config: EvaluateConfig, judge: JudgeConfig) -> int:
    """Draw a benchmark's prompts, and score them where a judge is named."""
    from ddx.cli.console import emit, emit_json, emit_settings, emit_table
    from ddx.config import to_dict

    if invocation.dry_run:
        emit_settings({**to_dict(config), **to_dict(judge)}, as_json=invocation.as_json)
        return 0
    invocation.loading("the pipeline")
    from ddx.evaluation.judged.run import run_benchmark

    report = run_benchmark(config, judge, (), invocation.workspace, invocation.progress)
    if invocation.as_json:
        emit_json(report)
        return 0
    tasks = list(dict.fromkeys(task for row in report["rows"] for task in row["tasks"]))
    if judge.judge is not None:
        emit_table(
            ["model", "steps", "overall", *tasks, "no answer"],
            [
                [
                    row["model"],
                    row["steps"],
                    row["overall"],
                    *(row["tasks"].get(task) for task in tasks),
                    row["missing"],
                ]
                for row in report["rows"]
            ],
        )
        emit("")
    for row in report["rows"]:
        emit(f"pictures  {row['folder']}")
    emit(f"report    {report['report']}")
    return 0


def protocol_settings(invocation: Invocation) -> dict[str, Any]:
    """Return the number of pictures of the protocol, where nobody asked for another."""
    from ddx.evaluation.protocols import PROTOCOLS

    protocol = PROTOCOLS.get(str(invocation.get("protocol")))
    asked = "num_images" in invocation.values or protocol is None
    return {} if asked or protocol is None else {"num_images": protocol.num_images}


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
