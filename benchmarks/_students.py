"""Students of the bundled teacher, distilled and scored by the commands that a user types, one core each."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import DDX, measured, once
from _environment import RESULTS, machine, write_result

from ddx.cli.console import emit
from ddx.metrics.table import METRICS

ROWS = 4096
SCORES = tuple(metric.name for metric in METRICS if metric.name != "seconds_per_image")
PUBLISHED = Path(__file__).resolve().parent / "_published.py"
ONE_CORE = {"OMP_NUM_THREADS": "1"}
NOT_SHOWN = ("colour", "count", "size", "relation")
SHOWN = {metric.name: metric.title for metric in METRICS if metric.name in SCORES and metric.name not in NOT_SHOWN}
TEACHER = "teacher"
# TwinFlow as ddx had it on the bundled teacher: jumps along the student's path, and the mean square.
ALONG_ITS_PATH = (
    *("--method", "twinflow", "--drawing", "path", "--loss", "l2", "--jump-weight", "none", "--near-span", "none"),
    *("--same-time-share", "0.1"),
)


@dataclass(frozen=True, kw_only=True)
class Student:
    """A student of a benchmark: `flags` go to `ddx distill`, over the recipe of the method.

    It begins with the weights of the student `after`, which must be made before it. `form` is of _published.py.
    """

    name: str
    flags: tuple[str, ...]
    seed: int = 0
    after: Student | None = None
    form: str | None = None

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return "-".join((*self.name.replace("=", "-").replace(",", "").split(), str(self.seed)))

    @property
    def program(self) -> tuple[str, ...]:
        """What distils it."""
        return DDX if self.form is None else (str(PUBLISHED), self.form)

    @property
    def arguments(self) -> list[str]:
        """The arguments of `ddx distill`."""
        start = [] if self.after is None else ["--from-student", f"students/{self.after.folder}"]
        place = ["--seed", str(self.seed), "--out", f"students/{self.folder}"]
        return ["distill", "--teacher", "sana-tiny", "--preset", "sana-tiny", *self.flags, *start, *place]


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark of students takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", action="append", type=int, help="may be repeated (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="students at a time, one core each")
    parser.add_argument("--num-images", type=int, default=200, help="held-out captions for each row")
    parser.add_argument("--keep", type=Path, help="folder for the store and the students")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    return parser


def run(
    benchmark: str,
    lines: Sequence[Sequence[Student]],
    arguments: argparse.Namespace,
    *,
    first: Sequence[Student] = (),
    num_rows: int = ROWS,
) -> int:
    """Make the store, then the students, write the result after each line of them, and print it as a table.

    The store has `num_rows`. Students of a line are made one after another, lines side by side, those of `first` before
    all lines. Rows that are measured again replace those of the result file, the others stay; a student that is there
    already is scored again and not made again. Returns 1 if one of them failed.
    """
    environment = machine()
    rows, failed = {_key(row): row for row in _known(benchmark, arguments.out)}, []
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(arguments.jobs))
        kept = arguments.keep or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(kept).absolute()
        _prepare(folder, arguments.num_images, num_rows)
        futures = [pool.submit(_measure_line, [student], folder, arguments.num_images) for student in first]
        wait(futures)
        futures += [pool.submit(_measure_line, line, folder, arguments.num_images) for line in lines]
        for future in as_completed(futures):
            try:
                found = future.result()
            except SystemExit as error:  # the others go on
                failed.append(str(error))
                continue
            rows |= {_key(row): row for row in found}
            order = sorted(rows.values(), key=lambda row: (row["model"], row["seed"], -row["steps"]))
            result = {"num_images": arguments.num_images, "rows": order}
            path = write_result(benchmark, result, environment, arguments.out)
            emit(f"{path}: {found[-1]['model']}, seed {found[-1]['seed']}")
    emit(as_table(list(rows.values())))
    if len({row["seed"] for row in rows.values()}) > 1:
        emit(f"\nMeans over the seeds:\n\n{as_table(means(list(rows.values())))}")
    for message in failed:
        emit(message)
    return 1 if failed else 0


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown: a line for each student, its scores at each number of steps, the least first."""
    models = dict.fromkeys((row["model"], row["seed"]) for row in rows)
    lines = [["model", "seed", "steps", *SHOWN.values(), "seconds", "GiB"], ["---"] * (len(SHOWN) + 5)]
    for model, seed in models:
        own = sorted((row for row in rows if _key(row)[:2] == (model, seed)), key=lambda row: int(row["steps"]))
        cells = [" / ".join(f"{row[name]:.2f}" for row in own) for name in SHOWN]
        cost = [str(own[0][name] or "") for name in ("train_seconds", "peak_memory_gib")]
        lines.append([model, str(seed), " / ".join(str(row["steps"]) for row in own), *cells, *cost])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each student and number of steps, its scores and costs the means over its seeds.

    "seed" tells how many there were.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["steps"]), []).append(row)
    return [{**own[0], **_mean(own), "seed": len(own)} for own in groups.values()]


def _mean(own: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in (*SCORES, "train_seconds", "peak_memory_gib") if own[0][name] is not None]
    return {name: round(sum(row[name] for row in own) / len(own), 3) for name in names}


def _prepare(folder: Path, num_images: int, num_rows: int) -> None:
    """Write the store of scenes, and draw the teacher's pictures, which every evaluation takes up from there."""
    folder.mkdir(parents=True, exist_ok=True)
    measured(["scenes", "scenes.parquet", "--rows", str(num_rows), "--seed", "1"], folder)
    measured(["precompute", "scenes.parquet", "--teacher", "sana-tiny"], folder)
    measured(["evaluate", "--teacher", "sana-tiny", "--num-images", str(num_images)], folder)


def _measure_line(line: Sequence[Student], folder: Path, num_images: int) -> list[dict[str, Any]]:
    return [row for student in line for row in _measure(student, folder, num_images)]


def _measure(student: Student, folder: Path, num_images: int) -> list[dict[str, Any]]:
    """Distil and score one student; return its row at each number of steps, and the teacher's."""
    name = student.folder
    log = f"distill-{name}"
    seconds = once(student.arguments, folder, log=log, environment=ONE_CORE, program=student.program)
    record = json.loads((folder / "students" / name / "run.json").read_text())
    scored = measured(
        ["evaluate", "--student", f"students/{name}", "--num-images", str(num_images), "--out", f"reports/{name}"],
        folder,
        log=f"evaluate-{name}",
        environment=ONE_CORE,
    )
    return [_row(row, student, record, seconds) for row in scored["printed"]["rows"]]


def _row(row: dict[str, Any], student: Student, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the result keeps of a row of the evaluation; a student's carries what it cost."""
    is_student = row["model"] == "student"
    cost = {
        "images": record["images_seen"],
        "train_seconds": record["seconds"],
        "processor_seconds": seconds,
        "peak_memory_gib": round(record["peak_memory_bytes"] / 1024**3, 2),
        "skipped_steps": record["skipped_steps"],
    }
    return {
        "model": student.name if is_student else TEACHER,
        "seed": student.seed if is_student else 0,
        "steps": row["steps"],
        "guidance": row["guidance"],
        **{name: None if row[name] is None else round(row[name], 3) for name in SCORES},
        **(cost if is_student else dict.fromkeys(cost)),
    }


def _known(benchmark: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of the result file."""
    path = folder / f"{benchmark}.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"]["rows"] if path.is_file() else []


def _key(row: dict[str, Any]) -> tuple[str, int, int]:
    """What a row is of."""
    return row["model"], row["seed"], row["steps"]
