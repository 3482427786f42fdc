"""The prompts of benchmarks and the questions that their pictures must answer with yes.

GenEval (Ghosh et al. 2023, arXiv:2310.11513)     evaluation_metadata.jsonl: a prompt and its objects a line
DPG-Bench (Hu et al. 2024, arXiv:2403.05135)      dpg_bench.csv: a question a line, some of which hang on others
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a picture; it counts only where those of `parents` (by key) were answered with yes."""

    key: str
    text: str
    category: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """A prompt of a benchmark: the name of its files, its category, and its questions."""

    name: str
    prompt: str
    category: str
    questions: tuple[Question, ...]
    metadata: Mapping[str, Any]


def read_items(benchmark: str, path: Path) -> tuple[Item, ...]:
    """Return the prompts of a benchmark's own file. UsageError for one that is not of its kind."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint=_KINDS[benchmark]) from error
    items = tuple(_geneval(text, path) if benchmark == "geneval" else _dpg(text, path))
    if not items:
        raise UsageError(f"{path} holds no prompt", hint=_KINDS[benchmark])
    return items


def score(item: Item, answers: Mapping[str, bool], benchmark: str) -> float | None:
    """Return the score of one picture from the answers by key, None where one is missing.

    GenEval: 1 if every answer is yes. DPG-Bench: the share of yes, where a question counts as no if a parent is no.
    """
    if any(question.key not in answers for question in item.questions):
        return None
    if benchmark == "geneval":
        return float(all(answers[question.key] for question in item.questions))
    kept = [
        answers[question.key] and all(answers.get(parent, True) for parent in question.parents)
        for question in item.questions
    ]
    return sum(kept) / len(kept)


def _geneval(text: str, path: Path) -> Iterator[Item]:
    for number, line in enumerate(line for line in text.splitlines() if line.strip()):
        try:
            entry = json.loads(line)
            questions = tuple(_object_questions(entry["include"], entry.get("exclude") or []))
            yield Item(
                name=f"{number:05d}",
                prompt=str(entry["prompt"]),
                category=str(entry["tag"]),
                questions=questions,
                metadata=entry,
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UsageError(
                f"line {number + 1} of {path} is no prompt of GenEval: {error}", hint=_KINDS["geneval"]
            ) from error


def _object_questions(include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]]) -> Iterator[Question]:
    """Yield what must hold of the objects: their number, colour and place."""
    limits = {str(entry["class"]): int(entry["count"]) - 1 for entry in exclude}
    for number, entry in enumerate(include):
        name, count = str(entry["class"]), int(entry.get("count", 1))
        exact = limits.get(name) == count
        wanted = f"exactly {count}" if exact else f"at least {count}"
        colour = f"{entry['color']} " if "color" in entry else ""
        noun = f"{colour}{name}" + (" objects" if count > 1 else "")
        yield Question(
            key=f"object{number}", text=f"Does the picture show {wanted} {noun}?", category=str(entry.get("class"))
        )
        if "position" in entry:
            place, other = entry["position"][0], include[int(entry["position"][1])]["class"]
            yield Question(
                key=f"position{number}", text=f"Is the {name} {place} the {other} in the picture?", category="position"
            )


def _dpg(text: str, path: Path) -> Iterator[Item]:
    rows: dict[str, list[dict[str, str]]] = {}
    reader = csv.DictReader(text.splitlines())
    wanted = ("item_id", "text", "proposition_id", "dependency", "question_natural_language")
    if missing := [name for name in wanted if name not in (reader.fieldnames or ())]:
        raise UsageError(f"{path} has no column {missing[0]}", hint=_KINDS["dpg"])
    for row in csv.DictReader(text.splitlines(keepends=True)):
        if row.get("item_id"):
            rows.setdefault(row["item_id"], []).append(row)
    for name, lines in rows.items():
        questions = tuple(
            Question(
                key=line["proposition_id"],
                text=line["question_natural_language"],
                category=line.get("category_broad") or "other",
                parents=tuple(part.strip() for part in line["dependency"].split(",") if part.strip() not in ("", "0")),
            )
            for line in lines
        )
        yield Item(name=name, prompt=lines[0]["text"], category="all", questions=questions, metadata={"item_id": name})


_KINDS = {
    "geneval": "--prompts takes GenEval's evaluation_metadata.jsonl",
    "dpg": "--prompts takes DPG-Bench's dpg_bench.csv",
}
