"""The report of an evaluation: report.json, one HTML page, and the scores in the student's model card."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import cannot_write
from ddx.evaluation.results import EvaluationResult, ModelResult, TestSet
from ddx.metrics.table import shown_metrics
from ddx.teachers.samplers.names import OWN

if TYPE_CHECKING:
    from ddx.page import Table
    from ddx.sampling.page import Column

# The page shows these results side by side, where they were drawn.
SHOWN = (("teacher", 20), ("teacher", 1), ("student", 1), ("student", 2), ("student", 4))


def write_report(
    folder: Path,
    name: str,
    result: EvaluationResult,
    tests: TestSet,
    results: Sequence[ModelResult],
    num_prompts: int,
) -> EvaluationResult:
    """Write report.json and index.html into `folder`, and the scores into the student's card; return where they are."""
    from ddx.sampling.card import write_card
    from ddx.sampling.page import comparison_page

    count = min(num_prompts, len(tests.prompts))
    facts = result.facts
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = comparison_page(
            folder / "index.html",
            title=f"{name} and its teacher" if result.student else name,
            lead=_lead(result),
            prompts=tests.prompts[:count],
            seeds=tests.seeds[:count],
            columns=_columns(results, count),
            table=_table(result),
            extra=_frequencies(results),
            facts={
                "pictures a row": str(facts["num_images"]),
                "size": str(facts["size"]),
                **({} if facts["sampler"] == OWN else {"sampler": str(facts["sampler"])}),
                "reference": str(facts["reference"]),
                "feature space": str(facts["feature_space"]),
                "ddx": str(facts["versions"]["ddx"]),
                "torch": str(facts["versions"].get("torch", "")),
            },
        )
        final = dataclasses.replace(result, report=folder / "report.json", page=page)
        _write_json(folder / "report.json", final.to_dict())
        if result.student is not None:
            write_card(result.student, result.rows)
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error
    return final


def _lead(result: EvaluationResult) -> str:
    def find(model: str, steps: int | None) -> dict[str, Any] | None:
        rows = [row for row in result.rows if row["model"] == model and steps in (None, row["steps"])]
        return max(rows, key=lambda row: int(row["steps"])) if rows else None

    teacher, student = find("teacher", None), find("student", 1)
    if teacher is None or student is None:
        return f"{result.facts['num_images']} pictures for each row."
    text = f"One step of the student beside {teacher['steps']} steps of its teacher, {result.facts['teacher']}"
    if teacher["overall"] is not None and student["overall"] is not None:
        one = find("teacher", 1)
        text += f": all of the caption holds in {student['overall']:.0%} of its pictures"
        text += f", {teacher['overall']:.0%} of the teacher's"
        if one is not None and one["steps"] == 1:
            text += f", and {one['overall']:.0%} of the teacher's in one step"
    return text + "."


def _columns(results: Sequence[ModelResult], count: int) -> list[Column]:
    from PIL import Image

    from ddx.sampling.page import Column

    longest = max((one.steps for one in results if one.model == "teacher"), default=20)
    wanted = [(model, longest if (model, steps) == ("teacher", 20) else steps) for model, steps in SHOWN]
    chosen = [one for one in results if (one.model, one.steps) in wanted] or list(results)
    return [
        Column(
            title=f"{one.model}, {one.steps} step{'s' if one.steps > 1 else ''}",
            pictures=[Image.fromarray(image) for image in one.drawn.images[:count]],
            student=one.model == "student",
        )
        for one in chosen
    ]


def _frequencies(results: Sequence[ModelResult]) -> str:
    """Return the chart of what the student draws beside the teacher at its most steps."""
    from ddx.evaluation.octaves import MOST, octave_chart, octaves_of

    named = {f"{one.model}, {one.steps} step{'s' if one.steps > 1 else ''}": one for one in results}
    best = max(named, key=lambda name: (named[name].model == "teacher", named[name].steps))
    found = {name: octaves_of(one.drawn.images[:MOST]) for name, one in named.items()}
    reference = found.pop(best)
    shown = {name: octaves for name, octaves in found.items() if octaves is not None}
    return "" if reference is None else octave_chart(shown, best, reference)


def _table(result: EvaluationResult) -> Table:
    from ddx.page import Table

    shown = shown_metrics(result.rows)
    rows = [
        [
            f"{row['model']}, {row['steps']} step{'s' if row['steps'] > 1 else ''}",
            *(metric.text(row[metric.name]) for metric in shown),
        ]
        for row in result.rows
    ]
    students = frozenset(i for i, row in enumerate(result.rows) if row["model"] == "student")
    return Table(
        headings=["", *(metric.title for metric in shown)], rows=rows, student_rows=students, note=_note(result)
    )


def _note(result: EvaluationResult) -> str:
    facts = result.facts
    parts = []
    if any(row["overall"] is not None for row in result.rows):
        parts.append("Overall is the share of pictures in which everything that the caption says holds.")
    parts.append(
        f"Fréchet distance, precision and recall compare with {facts['reference']} in the feature space "
        f"{facts['feature_space']}."
    )
    if facts["frechet_floor"] is not None:
        parts.append(f"Freshly rendered pictures of the same captions have a distance of {facts['frechet_floor']:.3g}.")
    parts.append("Diversity is the variance over seeds of one prompt, relative to the teacher at its most steps.")
    if facts["sampler"] != OWN:
        parts.append(f"Sampler of the teacher: {facts['sampler']}.")
    scales = sorted({row["guidance"] for row in result.rows if row["model"] == "teacher"})
    parts.append("Guidance of the teacher: " + ", ".join(f"{scale:g}" for scale in scales) + ".")
    return " ".join(parts)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
