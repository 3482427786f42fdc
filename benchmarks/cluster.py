"""What a step takes of each GPU of many, and what they send each other: by a fake run and arithmetic, on no GPU.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --teachers sdxl --methods lcm

A row a teacher and method, by the recipe of `ddx distill` in bfloat16 with one picture a GPU and the longest captions.
The fake run counts what is alive and how often each network is gone through; see `ddx.memory.over_gpus` for what is
arithmetic on top of it. A second picture a GPU adds its activations and nothing to what is sent. Rows that the result
file has already are not counted again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _environment import machine, write_result

from ddx.cli.distill_memory import planner_of
from ddx.config import Settings
from ddx.memory.plan import ALLOWANCE
from ddx.memory.repeats import Repeats
from ddx.training.resolve import resolve_recipe

TEACHERS = ("sana-600m", "sana-1600m", "sdxl", "z-image", "flux1-dev")
METHODS = ("lcm", "sid", "dmd2", "scm", "sida", "decoupled-dmd", "shortcut", "sana-sprint", "twinflow")
WORLDS = (1, 8, 64)
MACHINE = 8  # GPUs
CARDS = (24, 48, 80, 141)  # GB


def main() -> None:
    """Count and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    arguments = parser.parse_args()
    environment, rows = machine(), rows_so_far()
    known = {(row["teacher"], row["method"]) for row in rows}
    for teacher in arguments.teachers:
        repeats = Repeats()  # methods of a teacher go through the same blocks
        for method in arguments.methods:
            if (teacher, method) not in known:
                rows.append(count(teacher, method, repeats))
                write_result("cluster", {"allowance": ALLOWANCE, "rows": rows}, environment)
                print(line(rows[-1]), flush=True)
    for row in sorted(rows, key=lambda row: (TEACHERS.index(row["teacher"]), METHODS.index(row["method"]))):
        print(line(row))


def rows_so_far() -> list[dict[str, Any]]:
    """Return the rows of an earlier call: a long table is counted in several."""
    path = Path(__file__).parent / "results" / "cluster.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["result"]["rows"] if path.is_file() else []
    return rows


def count(teacher: str, method: str, repeats: Repeats) -> dict[str, Any]:
    """Return the peaks and what is received, in bytes, of one teacher and method."""
    values = {"teacher": teacher, "method": method, "micro_batch_size": 1, "memory": f"{CARDS[-1]}GB"}
    planner = planner_of(resolve_recipe([Settings(values, "the benchmark")]))
    planner.repeats = repeats
    found = planner.over_gpus(WORLDS)
    return {
        "teacher": teacher,
        "method": method,
        "weights_bytes": {name: weights.total for name, weights in found.weights.items()},
        "passes": found.passes,
        "turns": found.turns,
        "updates": found.updates,
        "peak_bytes": {str(world): peak for world, peak in found.peaks.items()},
        "received_bytes": {
            "whole": found.received_whole(WORLDS[-1]),
            **{str(world): found.received(world) for world in WORLDS[1:]},
            "hybrid_inside": found.received(MACHINE),
            "hybrid_between": found.received_between(MACHINE, WORLDS[-1] // MACHINE),
        },
    }


def line(row: dict[str, Any]) -> str:
    """Return a row of docs/cluster.md."""
    peaks = [row["peak_bytes"][str(world)] for world in WORLDS]
    received = row["received_bytes"]
    cells = [
        *(f"{peak / 1e9:,.0f}, {card(peak)}" for peak in peaks),
        *(in_gb(received[key]) for key in ("whole", "8", "64", "hybrid_between")),
    ]
    return f"| `{row['teacher']}` | `{row['method']}` | {' | '.join(cells)} |"


def in_gb(num_bytes: int) -> str:
    """Return so many bytes with two digits or more."""
    return f"{num_bytes / 1e9:,.0f}" if num_bytes >= 1e10 else f"{num_bytes / 1e9:.1f}"


def card(peak: int) -> str:
    """Return the smallest card that holds it."""
    size = next((size for size in CARDS if peak + ALLOWANCE <= size * 1e9), None)
    return "no card" if size is None else f"{size} GB"


if __name__ == "__main__":
    main()
