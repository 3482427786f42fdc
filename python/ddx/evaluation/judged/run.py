"""`ddx evaluate --benchmark`: draw a benchmark's prompts into its folder layout, judge, and score.

geneval    <out>/<row>/00000/metadata.jsonl, samples/00000.png …     one folder a prompt
dpg        <out>/<row>/<item>.png                                    four pictures a file, two by two
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ddx.config import to_dict
from ddx.errors import DdxError, UsageError, cannot_write
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.drawn import Requests, draw_into
from ddx.evaluation.judged.config import JudgeConfig
from ddx.evaluation.judged.items import Item, read_items, score
from ddx.evaluation.judged.judge import INSTRUCTION, Asked, Judge
from ddx.evaluation.prompt_lists import prompts_hash
from ddx.evaluation.real_drawing import open_models
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions, write_json
from ddx.workspace import Workspace, slug


@dataclass(kw_only=True)
class JudgedRow:
    """One model at one number of steps: where its pictures are, and what the judge found."""

    model: str
    kind: str
    steps: int
    guidance: float | None
    folder: Path
    overall: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    judged: int = 0
    missing: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {**self.__dict__, "folder": str(self.folder)}


def run_benchmark(
    config: EvaluateConfig,
    judge: JudgeConfig,
    students: Sequence[Path] = (),
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw, judge where a judge is named, write report.json, and return what it holds."""
    workspace, progress = workspace or Workspace(), progress or NullProgress()
    assert judge.benchmark is not None
    if config.prompts is None:
        raise UsageError(f"{judge.benchmark} needs its own prompt file", hint="--prompts FILE; it is not bundled")
    items = read_items(judge.benchmark, config.prompts)
    out = config.out or workspace.report_path(judge.benchmark)
    rows = []
    for kind, pipeline in open_models(config, students, workspace, progress):
        for steps in config.steps if kind == "student" else config.teacher_steps[:1]:
            for guidance in config.guidance or (None,):
                if guidance is not None:
                    pipeline.set_guidance(guidance)
                scale = "" if guidance is None else f"-guidance{guidance:g}"
                folder = out / f"{slug(pipeline.files.name)}-{steps}step{scale}"
                count = judge.samples_per_prompt
                requests = Requests(
                    prompts=tuple(item.prompt for item in items for _ in range(count)),
                    seeds=tuple(config.seed * 1_000_000 + i for i in range(len(items) * count)),
                    size=config.pixels,
                    steps=steps,
                )
                progress.start(f"draw: {folder.name}", len(requests.prompts), "pictures")
                root = workspace.root / "cache" / "drawn"
                own = {"sampler": config.sampler} if kind == "teacher" else {}
                drawn = draw_into(root, pipeline, requests, config.batch_size, progress, **own)
                progress.finish()
                row = JudgedRow(
                    model=pipeline.files.name, kind=kind, steps=steps, guidance=pipeline.guidance, folder=folder
                )
                rows.append(row)
                groups = [drawn.paths[i * count : (i + 1) * count] for i in range(len(items))]
                for item, paths in zip(items, groups, strict=True):
                    lay_out(judge.benchmark, folder, item, paths)
                if judge.judge is not None:
                    _judge(row, items, groups, judge, progress)
    report = {
        "benchmark": judge.benchmark,
        "judge": judge.judge_model,
        "instruction": INSTRUCTION if judge.judge else None,
        "prompts": str(config.prompts),
        "prompts_sha256": prompts_hash([item.prompt for item in items]),
        "rows": [row.to_dict() for row in rows],
        "config": {**to_dict(config), **to_dict(judge)},
        "versions": versions(),
    }
    try:
        write_json(out / "report.json", report)
    except OSError as error:
        raise cannot_write(out, error) from error
    return {**report, "report": str(out / "report.json")}


def lay_out(benchmark: str, folder: Path, item: Item, paths: Sequence[Path]) -> None:
    """Put the pictures of a prompt where the benchmark's own program looks for them."""
    try:
        if benchmark == "geneval":
            samples = folder / item.name / "samples"
            samples.mkdir(parents=True, exist_ok=True)
            (folder / item.name / "metadata.jsonl").write_text(json.dumps(item.metadata), encoding="utf-8")
            for number, path in enumerate(paths):
                _copy(path, samples / f"{number:05d}.png")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _grid(paths, folder / f"{slug(item.name)}.png")
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error


def _judge(
    row: JudgedRow, items: Sequence[Item], groups: Sequence[Sequence[Path]], config: JudgeConfig, progress: Progress
) -> None:
    assert config.benchmark is not None
    judge = Judge(config, row.folder / "answers.jsonl")
    pictures = [
        (item, f"{item.name}/{number}", path)
        for item, paths in zip(items, groups, strict=True)
        for number, path in enumerate(paths)
    ]
    questions = [
        Asked(picture=name, key=question.key, text=question.text, path=path)
        for item, name, path in pictures
        if path.is_file()
        for question in item.questions
    ]
    progress.start(f"judge: {row.folder.name}", len(questions), "questions")
    judge.ask_all(questions, progress.advance)
    progress.finish()
    marks: dict[str, list[list[float]]] = {}
    answers = judge.by_picture()
    for item, paths in zip(items, groups, strict=True):
        names = [f"{item.name}/{number}" for number in range(len(paths))]
        found = [score(item, answers.get(name, {}), config.benchmark) for name in names]
        known = [mark for mark in found if mark is not None]
        row.judged += len(known)
        row.missing += len(found) - len(known)
        if known:
            marks.setdefault(item.category, []).append(known)
    if config.benchmark == "geneval":  # of pictures within a task, then of tasks
        row.tasks = {name: statistics.fmean(chain.from_iterable(group)) for name, group in marks.items()}
    else:  # of pictures within a prompt, then of prompts
        row.tasks = {name: statistics.fmean(map(statistics.fmean, group)) for name, group in marks.items()}
    row.overall = statistics.fmean(row.tasks.values()) if row.tasks else None
    row.failures = judge.failures
    if row.missing:
        progress.log(f"{row.folder.name}: {row.missing} pictures have no full answer; the same command asks again")


def _copy(source: Path, target: Path) -> None:
    """Link a picture, or copy it to another file system; one that could not be drawn is not there."""
    if not source.is_file() or (target.is_file() and target.stat().st_size == source.stat().st_size):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _grid(paths: Sequence[Path], target: Path) -> None:
    from PIL import Image

    from ddx.evaluation.picture_files import read_picture

    if target.is_file() and all(not path.is_file() or path.stat().st_mtime <= target.stat().st_mtime for path in paths):
        return
    pictures = []
    for path in paths:
        try:
            pictures.append(Image.fromarray(read_picture(path)))
        except DdxError:
            continue
    if not pictures:
        return
    width, height = pictures[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % 2 * width, number // 2 * height))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    whole.save(temporary, "PNG")
    os.replace(temporary, target)
