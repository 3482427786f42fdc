"""Methods on teachers that are known exactly: the share of samples off the modes, and how wrong the
widths and shares of the worst mode are. The recipes are those of ddx.bench.mixtures.recipes.

    python benchmarks/mixtures.py                            # every method on every ground: about two hours, two cores
    python benchmarks/mixtures.py --method sid --ground flow

A recipe was found on flow and is taken to the other grounds as it is, but for what it says of one.
Rows that are measured again replace those of the result file; the others stay. Exit code 1 if one of the numbers of
steps that a recipe claims misses the gate.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result

from ddx.bench.mixtures.gate import MAX_ERROR, MAX_OFF_MODE
from ddx.bench.mixtures.grounds import GROUNDS
from ddx.bench.mixtures.recipes import RECIPES
from ddx.bench.mixtures.run import distil
from ddx.cli.console import emit
from ddx.errors import UsageError

STEPS = (1, 2, 4)
TITLES = {
    "flow": "flow",
    "16-D": "flow, 16-D",
    "guided": "flow, guided",
    "edm": "EDM",
    "vp-v": "VP, v",
    "vp-eps-sd": "VP, ε",
    "vp-eps": "VP, ε, to noise",
}


def main() -> int:
    """Distil, write the result after every student, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=sorted(RECIPES), help="may be repeated (default: all)")
    parser.add_argument("--ground", action="append", choices=sorted(GROUNDS), help="may be repeated (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="students at a time, one core each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    wanted = [(method, ground) for method in arguments.method or RECIPES for ground in arguments.ground or GROUNDS]
    environment, rows = machine(), {key_of(row): row for row in known(arguments.out)}
    missed: list[str] = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(measure, *pair) for pair in wanted]):
            for row in future.result():
                rows[key_of(row)] = row
                if row["steps"] in RECIPES[row["method"]].passes.get(row["ground"], ()) and not row["passed"]:
                    missed.append("{method} on {ground} in {steps}".format_map(row))
                emit(" ".join(f"{name}={value}" for name, value in row.items()))
            order = sorted(rows.values(), key=lambda row: (list(RECIPES).index(row["method"]), *key_of(row)[1:]))
            path = write_result("mixtures", {"rows": order}, environment, arguments.out)
    emit(f"{as_table(order)}\n\n{path}")
    for claim in missed:
        emit(f"does not pass: {claim}")
    return 1 if missed else 0


def measure(method: str, ground: str) -> list[dict[str, Any]]:
    """Distil one student and hold it to the gate at each number of steps; none where the method refuses the ground."""
    torch.set_num_threads(1)
    recipe, where = RECIPES[method], GROUNDS[ground]
    settings = {**recipe.settings, **recipe.on.get(ground, {}), **where.settings}
    try:
        student = distil(method, where.teacher(features=recipe.features), **settings)
    except UsageError as refused:
        emit(f"{method} on {ground}: {refused}")
        return []
    config = student.trainer.config
    return [
        {
            "method": method,
            "ground": ground,
            "steps": steps,
            **{name: round(value, 4) for name, value in asdict(found).items()},
            "passed": found.passed,
            "seconds": round(student.seconds, 1),
            "images": config.train_steps * config.batch_size,
        }
        for steps in STEPS
        for found in [student.gate(steps)]
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: a line for each method, a column for each ground.

    A cell has the numbers of steps that pass, in bold, and off the modes / worst width / worst share in per cent of the
    least of them; where none passes, of the one that comes nearest, with its number of steps.
    """
    lines = [["method", *TITLES.values()], ["---"] * (1 + len(TITLES))]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        lines.append([f"`{method}`", *(_cell([row for row in own if row["ground"] == ground]) for ground in TITLES)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    passing = [row for row in rows if row["passed"]]
    shown = min(passing, key=lambda row: int(row["steps"])) if passing else min(rows, key=_miss)
    figures = f"{shown['off_mode']:.1%} / {shown['worst_std']:.0%} / {shown['worst_share']:.0%}".replace("%", "")
    steps = f"**{', '.join(str(row['steps']) for row in passing)}**" if passing else f"({shown['steps']})"
    return f"{steps} {figures}"


def _miss(row: dict[str, Any]) -> float:
    """How many times its limit the worst measure is."""
    return max(row["off_mode"] / MAX_OFF_MODE, row["worst_std"] / MAX_ERROR, row["worst_share"] / MAX_ERROR)


def known(folder: Path) -> list[dict[str, Any]]:
    """The rows of the result file whose methods still have a recipe."""
    path = folder / "mixtures.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["result"]["rows"]
    return [row for row in rows if row["method"] in RECIPES]


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """What a row is of."""
    return row["method"], row["ground"], row["steps"]


if __name__ == "__main__":
    sys.exit(main())
