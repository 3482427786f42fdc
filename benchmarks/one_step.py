"""How right one step of the bundled teacher is after an hour of one core: the stages of `ddx run one-step`, by seed.

    python benchmarks/one_step.py --seed 0 --seed 1 --seed 2 --keep FOLDER     # an hour a seed

Each student is scored in one step, on held-out captions and again on as many others with other noise, beside the
teacher in twenty. A stage costs the seconds of processor that its command took, those of the store once. With --keep a
stage that was made before is not made again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import measured, once
from _environment import RESULTS, machine, write_result
from _students import ONE_CORE, SCORES

from ddx.cli.console import emit
from ddx.cli.invocation import find_config
from ddx.cli.pipeline import read_pipeline
from ddx.cli.stages import WITH_STUDENT, Stage, resolve
from ddx.workspace import Workspace, slug

PRESET = "one-step"
CAPTIONS = (0, 1)  # seeds of `ddx evaluate`
SHOWN = ("overall", "object", "count", "frechet", "precision", "recall")


def main() -> int:
    """Make and score the students, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", action="append", type=int, help="may be repeated (default: 0)")
    parser.add_argument("--num-images", type=int, default=400, help="held-out captions for each row")
    parser.add_argument("--keep", type=Path, help="folder for the store and the students")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment = machine()
    with ExitStack() as stack:
        kept = arguments.keep or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(kept).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        runs = []
        for seed in arguments.seed or [0]:
            runs.append(run(seed, folder, arguments.num_images))
            result = {"preset": PRESET, "num_images": arguments.num_images, "runs": runs}
            emit(str(write_result("one_step", result, environment, arguments.out)))
    for line in table(runs):
        emit(line)
    return 0


def run(seed: int, folder: Path, num_images: int) -> dict[str, Any]:
    """Return the cost of each stage of one seed, and the rows of its students."""
    cost: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name, stage in stages_of(seed, folder):
        student = stage.name in WITH_STUDENT
        cost[name] = once(
            [stage.name, *stage.arguments], folder, log=f"{name}-{seed}" if student else name, environment=ONE_CORE
        )
        if student:
            known = {(row["stage"], row["captions"]) for row in rows}  # the teacher's, from the stage before
            found = score(name, str(stage.output), folder, num_images)
            rows += [row for row in found if (row["stage"], row["captions"]) not in known]
    return {"seed": seed, "processor_seconds": cost, "rows": rows}


def stages_of(seed: int, folder: Path) -> list[tuple[str, Stage]]:
    """Return the stages up to the last student by name, the store's shared by all seeds."""
    named: list[str] = []
    entries: list[tuple[str, dict[str, Any]]] = []
    for command, given in read_pipeline(find_config(PRESET), workspace=folder):
        settings = dict(given)
        name = str(settings.get("method", command))
        if command in WITH_STUDENT:
            count = 1 + sum(other.split()[0] == name for other in named)
            name = name if count == 1 else f"{name} {count}"
            settings["out"] = f"students/{slug(name)}-{seed}"
        if command == "distill":
            settings["seed"] = seed
        if command == "precompute":
            settings["out"] = "store.zarr"
        if command in ("scenes", "precompute", *WITH_STUDENT):
            named.append(name)
            entries.append((command, settings))
    return list(zip(named, resolve(entries, Workspace(folder), PRESET), strict=True))


def score(stage: str, student: str, folder: Path, num_images: int) -> list[dict[str, Any]]:
    """Return the rows of a student in one step, and of its teacher in twenty, on both sets of captions."""
    rows = []
    for captions in CAPTIONS:
        words = ["--student", student, "--steps", "1", "--teacher-steps", "20", "--num-images", str(num_images)]
        out = f"reports/{Path(student).name}-{captions}"
        scored = measured(
            ["evaluate", *words, "--seed", str(captions), "--out", out], folder, log="evaluate", environment=ONE_CORE
        )
        rows += [
            {
                **{"stage": stage if row["model"] == "student" else "teacher"},
                **{"captions": captions, "steps": row["steps"]},
                **{name: row[name] for name in SCORES},
            }
            for row in scored["printed"]["rows"]
        ]
    return rows


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Return a table in Markdown: a line for each student, its figures on the first captions and on the others."""
    lines = [f"| student | seed | {' | '.join(SHOWN)} | minutes |", "|---" * (len(SHOWN) + 3) + "|"]
    teacher = [row for row in runs[0]["rows"] if row["stage"] == "teacher"]
    lines.append(f"| teacher, 20 steps | | {' | '.join(both(teacher))} | |")
    for one in runs:
        minutes = 0.0
        for stage, seconds in one["processor_seconds"].items():
            minutes += seconds / 60.0
            rows = [row for row in one["rows"] if row["stage"] == stage]
            if rows:
                lines.append(f"| `{stage}` | {one['seed']} | {' | '.join(both(rows))} | {minutes:.0f} |")
    return lines


def both(rows: list[dict[str, Any]]) -> list[str]:
    """Return the shown figures, on the first captions and on the others."""
    return ["; ".join(f"{row[name]:.3f}" for row in rows) for name in SHOWN]


if __name__ == "__main__":
    sys.exit(main())
