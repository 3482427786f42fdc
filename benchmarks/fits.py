"""Which distillation fits which device: the peak of a step, counted on tensors without data, no GPU and no weights.

    python benchmarks/fits.py
    python benchmarks/fits.py --teachers sdxl --methods lcm sid

A line a teacher and method, GiB with each set of savings. One row a micro-batch and the longest captions: the least
that a run takes. `ddx distill --memory` chooses from the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import machine, write_result

from ddx.memory.plan import (
    ACTIVATIONS,
    ALLOWANCE,
    AVERAGES,
    CHECKPOINTING,
    EIGHT_BITS,
    FROZEN,
    LOW_RANK,
    MOMENTS,
    ROUNDED,
    Device,
    Planner,
    merged,
)
from ddx.methods.registry import method_spec
from ddx.training.config import DistillConfig

TEACHERS = ("sana-600m", "sana-1600m", "sdxl", "z-image", "flux1-dev")
# one of each kind: a student and its target; a student and a fake score; these and a discriminator on features
METHODS = ("lcm", "sid", "dmd2")
ALL_ON_HOST = (MOMENTS, AVERAGES, FROZEN, ACTIVATIONS)
SAVINGS = {
    "whole": (CHECKPOINTING,),
    "bf16 averages": (CHECKPOINTING, ROUNDED),
    "bf16 averages, 8-bit moments": (CHECKPOINTING, ROUNDED, EIGHT_BITS),
    "bf16 averages, moments on the host": (CHECKPOINTING, ROUNDED, MOMENTS),
    "all on the host": (CHECKPOINTING, *ALL_ON_HOST),
    "low rank": (CHECKPOINTING, LOW_RANK),
    "low rank, moments on the host": (CHECKPOINTING, LOW_RANK, MOMENTS),
    "low rank, all on the host": (CHECKPOINTING, LOW_RANK, *ALL_ON_HOST),
}
DEVICES = (12, 24, 48, 80, 141)  # GB of the cards that people have
LARGEST = 150e9  # bytes: what is above without its activations is not counted further


def main() -> None:
    """Count and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--name", default="fits", help="name of the result's file")
    arguments = parser.parse_args()
    environment, rows = machine(), rows_so_far(arguments.name)
    known = {(row["teacher"], row["method"]) for row in rows}
    for teacher in arguments.teachers:
        for method in arguments.methods:
            if (teacher, method) not in known:
                rows.append(count(teacher, method))
                where = write_result(arguments.name, {"allowance": ALLOWANCE, "rows": rows}, environment)
                print(f"wrote {where}", flush=True)
    print_table(rows)


def rows_so_far(name: str) -> list[dict[str, Any]]:
    """Return the rows of an earlier call with the same savings: a long table is counted in several."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["result"]["rows"] if path.is_file() else []
    return [row for row in rows if row["peak_bytes"].keys() == SAVINGS.keys()]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print what fits which device, as docs/memory.md has it."""
    print(f"| teacher | method | {' | '.join(f'{size} GB' for size in DEVICES)} |")
    print("|---|---|" + "---|" * len(DEVICES))
    for row in rows:
        fits = [
            next((k for k, v in row["peak_bytes"].items() if v and v + ALLOWANCE <= size * 1e9), "–")
            for size in DEVICES
        ]
        print(f"| `{row['teacher']}` | `{row['method']}` | {' | '.join(fits)} |")


def count(teacher: str, method: str) -> dict[str, Any]:
    """Return the peaks of one teacher and method in bytes, by what is saved; None above the largest device."""
    spec = method_spec(method)
    config = DistillConfig(method=method, teacher=teacher, **{**spec.method.defaults, "micro_batch_size": 1})
    planner = Planner(config, spec.config(), None, device=Device(True, torch.bfloat16))
    peaks: dict[str, int | None] = {}
    for name, choices in SAVINGS.items():
        changes = merged(config, choices)
        found = planner.footprint(dataclasses.replace(config, **changes), limit=LARGEST).peak.num_bytes
        peaks[name] = found if found <= LARGEST else None
    shown = ", ".join(f"{name} {'more' if size is None else f'{size / 2**30:.1f}'}" for name, size in peaks.items())
    print(f"{teacher} {method}: {shown} GiB", flush=True)
    return {"teacher": teacher, "method": method, "peak_bytes": peaks}


if __name__ == "__main__":
    main()
