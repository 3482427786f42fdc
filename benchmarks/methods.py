"""Every method on the bundled teacher, with one recipe each and one budget of pictures, scored by the exact checker.

    python benchmarks/methods.py --keep FOLDER                       # all of them, one seed: about two hours
    python benchmarks/methods.py --method sid --seed 0 --seed 1 --seed 2 --keep FOLDER

Students are made by `ddx distill --preset sana-tiny` and scored by `ddx evaluate`, beside the teacher, and beside plain
regression on the ends of the teacher's ODE. Each has one core. Rows that are measured again replace those of the result
file, the others stay; a student that stands in FOLDER already is scored again and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import measured
from _environment import RESULTS, machine, write_result

from ddx.cli.console import emit, emit_table
from ddx.evaluation.scores import ATTRIBUTES
from ddx.methods.registry import METHODS

REGRESSION = "regression"  # on the ends of the teacher's ODE, from pure noise alone
ROWS = 4096
SCORES = (*ATTRIBUTES, "frechet", "precision", "recall", "diversity")
ONE_CORE = {"OMP_NUM_THREADS": "1"}


def main() -> int:
    """Make the store, then student after student, write the result after each, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*METHODS, REGRESSION]
    parser.add_argument("--method", action="append", choices=names, help="may be repeated (default: all)")
    parser.add_argument("--seed", action="append", type=int, help="may be repeated (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="students at a time, one core each")
    parser.add_argument("--num-images", type=int, default=200, help="held-out captions for each row")
    parser.add_argument("--keep", type=Path, help="folder for the store and the students")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment = machine()
    rows, failed = {key_of(row): row for row in known(arguments.out)}, []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = (arguments.keep or Path(temporary)).absolute()
        prepare(folder, arguments.num_images)
        futures = [
            pool.submit(measure, method, seed, folder, arguments.num_images)
            for seed in arguments.seed or [0]
            for method in arguments.method or names
        ]
        for future in as_completed(futures):
            try:
                found = future.result()
            except SystemExit as error:  # the others go on
                failed.append(str(error))
                continue
            rows |= {key_of(row): row for row in found}
            order = sorted(rows.values(), key=lambda row: (row["model"], row["seed"], -row["steps"]))
            result = {"num_images": arguments.num_images, "rows": order}
            path = write_result("methods", result, environment, arguments.out)
            emit(f"{path}: {found[-1]['model']}, seed {found[-1]['seed']}")
    shown = ("model", "seed", "steps", "overall", "frechet", "precision", "recall", "diversity", "train_seconds")
    emit_table(list(shown), [[row[name] for name in shown] for row in rows.values()])
    for message in failed:
        emit(message)
    return 1 if failed else 0


def prepare(folder: Path, num_images: int) -> None:
    """Write the store of scenes, and draw the teacher's pictures, which every evaluation takes up from there."""
    folder.mkdir(parents=True, exist_ok=True)
    measured(["scenes", "scenes.parquet", "--rows", str(ROWS), "--seed", "1"], folder)
    measured(["precompute", "scenes.parquet", "--teacher", "sana-tiny"], folder)
    measured(["evaluate", "--teacher", "sana-tiny", "--num-images", str(num_images)], folder)


def measure(method: str, seed: int, folder: Path, num_images: int) -> list[dict[str, Any]]:
    """Distil and score one student; return its row at each number of steps, and the teacher's."""
    name = f"{method}-{seed}"
    choice = ["reflow", "--noise-share", "1"] if method == REGRESSION else [method]
    measured(
        [
            *("distill", "--method", *choice, "--teacher", "sana-tiny", "--preset", "sana-tiny"),
            *("--seed", str(seed), "--out", f"students/{name}"),
        ],
        folder,
        log=f"distill-{name}",
        environment=ONE_CORE,
    )
    record = json.loads((folder / "students" / name / "run.json").read_text())
    scored = measured(
        ["evaluate", "--student", f"students/{name}", "--num-images", str(num_images), "--out", f"reports/{name}"],
        folder,
        log=f"evaluate-{name}",
        environment=ONE_CORE,
    )
    return [row_of(row, method, seed, record) for row in scored["printed"]["rows"]]


def row_of(row: dict[str, Any], method: str, seed: int, record: dict[str, Any]) -> dict[str, Any]:
    """What the result keeps of a row of the evaluation; a student's carries what it cost."""
    is_student = row["model"] == "student"
    cost = {
        "images": record["images_seen"],
        "train_seconds": record["seconds"],
        "peak_memory_gib": round(record["peak_memory_bytes"] / 1024**3, 2),
        "skipped_steps": record["skipped_steps"],
    }
    return {
        "model": method if is_student else "teacher",
        "seed": seed if is_student else 0,
        "steps": row["steps"],
        "guidance": row["guidance"],
        **{name: None if row[name] is None else round(row[name], 3) for name in SCORES},
        **(cost if is_student else dict.fromkeys(cost)),
    }


def known(folder: Path) -> list[dict[str, Any]]:
    """The rows of the result file."""
    path = folder / "methods.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"]["rows"] if path.is_file() else []


def key_of(row: dict[str, Any]) -> tuple[str, int, int]:
    """What a row is of."""
    return row["model"], row["seed"], row["steps"]


if __name__ == "__main__":
    sys.exit(main())
