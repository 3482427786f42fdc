"""Which distillation fits which device: the peak of a step, counted on tensors without data, no GPU and no weights.

    python benchmarks/fits.py
    python benchmarks/fits.py --teachers sdxl --methods lcm sid

A row a teacher and method: what the recipe of `ddx distill` takes with one row a micro-batch and the longest captions,
then with the savings of `ddx distill --memory` in their order, until the smallest device holds it. Savings that cannot
bring a row into a device are passed over, see `floor`. Rows that the result file has already are not counted again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _environment import machine, write_result

from ddx.cli.distill_memory import planner_of
from ddx.config import Settings
from ddx.errors import DdxError
from ddx.memory.fake_run import AVERAGES, OPTIMIZER, WEIGHTS
from ddx.memory.ledger import Peak
from ddx.memory.plan import ALLOWANCE, merged
from ddx.memory.repeats import Repeats
from ddx.methods.registry import METHODS
from ddx.training.resolve import resolve_recipe

TEACHERS = ("sana-600m", "sana-1600m", "sdxl", "z-image", "flux1-dev")
DEVICES = (12, 24, 48, 80, 141)  # GB of the cards that people have
LARGEST = 150e9  # bytes: what is above without its activations is not counted further
SAID = ("micro_batch_size",)


def main() -> None:
    """Count and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS))
    parser.add_argument("--name", default="fits", help="name of the result's file")
    arguments = parser.parse_args()
    environment, rows = machine(), rows_so_far(arguments.name)
    known = {(row["teacher"], row["method"]) for row in rows}
    for teacher in arguments.teachers:
        repeats = Repeats()  # methods of a teacher go through the same blocks
        for method in arguments.methods:
            if (teacher, method) not in known:
                rows.append(count(teacher, method, repeats))
                where = write_result(arguments.name, {"allowance": ALLOWANCE, "rows": rows}, environment)
                print(f"wrote {where}", flush=True)
    for line in table(rows):
        print(line)


def rows_so_far(name: str) -> list[dict[str, Any]]:
    """Return the rows of an earlier call: a long table is counted in several."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["result"]["rows"] if path.is_file() else []
    return [row for row in rows if "counted" in row]


def count(teacher: str, method: str, repeats: Repeats) -> dict[str, Any]:
    """Return the peaks in bytes of one teacher and method, saving by saving; or why the two do not go together."""
    values = {"teacher": teacher, "method": method, "micro_batch_size": 1, "memory": f"{DEVICES[-1]}GB"}
    counted: list[dict[str, Any]] = []
    known: dict[bool, tuple[dict[str, Any], Peak]] = {}  # the first count of whole networks, and of low-rank ones
    left = list(DEVICES)
    try:
        recipe = resolve_recipe([Settings(values, "the benchmark")])
        planner = planner_of(recipe)
        planner.repeats = repeats
        for choices in planner.ladder(SAID):
            settings = merged(recipe.config, choices)
            is_low = "lora_rank" in settings
            if is_low in known and not _holds(left[-1], floor(*known[is_low], settings)):
                continue
            found = planner.footprint(dataclasses.replace(recipe.config, **settings), limit=LARGEST, looks=False)
            known.setdefault(is_low, (settings, found.peak))
            peak = found.peak.num_bytes
            counted.append({"settings": settings, "peak_bytes": peak, "host_bytes": found.host_bytes})
            print(f"{teacher} {method} {settings}: {peak / 2**30:.1f} GiB", flush=True)
            left = [size for size in left if not _holds(size, peak)]
            if not left:
                break
    except DdxError as error:
        print(f"{teacher} {method}: {error}", flush=True)
        return {"teacher": teacher, "method": method, "counted": [], "refused": str(error)}
    return {"teacher": teacher, "method": method, "counted": counted}


def floor(before: dict[str, Any], peak: Peak, settings: dict[str, Any]) -> int:
    """Return bytes under which `settings` do not bring the peak that was counted with `before`.

    At the moment of that peak they take away no more than what they are about; where that may be anything, 0.
    """
    added = {name: value for name, value in settings.items() if before.get(name) != value}
    offloaded = set(added.pop("offload", ()))
    if offloaded & {"frozen", "activations"} or added.keys() - {"average_dtype", "optimizer", "base_bits"}:
        return 0
    held = {kind: sum(size for use, size in peak.by_use.items() if use.kind == kind) for kind in _STATES}
    spared = held[OPTIMIZER] if "moments" in offloaded or "optimizer" in added else 0
    spared += held[AVERAGES] if "averages" in offloaded else held[AVERAGES] // 2 if "average_dtype" in added else 0
    spared += held[WEIGHTS] if "base_bits" in added else 0
    return peak.num_bytes - spared


_STATES = (OPTIMIZER, AVERAGES, WEIGHTS)


def _holds(size: int, peak: int) -> bool:
    return peak + ALLOWANCE <= size * 1e9


def first_fit(row: dict[str, Any], size: int) -> dict[str, Any] | None:
    """Return the settings of the first saving with which a device of `size` GB holds the step."""
    fits = (saving for saving in row["counted"] if _holds(size, saving["peak_bytes"]))
    return next((saving["settings"] for saving in fits), None)


def named(settings: dict[str, Any] | None) -> str:
    """Return a saving in few words: its last and dearest parts."""
    if settings is None:
        return "–"
    offloaded, words = settings.get("offload", ()), []
    if "lora_rank" in settings:
        words.append("LoRA")
    if "base_bits" in settings:
        words.append(f"{settings['base_bits']}-bit base")
    if len(offloaded) > 1:
        words.append("all on the host")
    elif offloaded:
        words.append("moments on the host")
    elif "optimizer" in settings:
        words.append("8-bit moments")
    elif "average_dtype" in settings:
        words.append("bf16 averages")
    elif not words and settings:
        words.append("checkpointing")
    return ", ".join(words) or "as it is"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of docs/memory.md; methods that a teacher's devices hold with the same savings share one."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for row in sorted(rows, key=lambda row: TEACHERS.index(row["teacher"])):
        if row["counted"]:
            cells = tuple(named(first_fit(row, size)) for size in DEVICES)
            shared.setdefault((row["teacher"], *cells), []).append(f"`{row['method']}`")
    lines = [
        f"| teacher | methods | {' | '.join(f'{size} GB' for size in DEVICES)} |",
        "|---|---|" + "---|" * len(DEVICES),
    ]
    return lines + [f"| `{key[0]}` | {' '.join(methods)} | {' | '.join(key[1:])} |" for key, methods in shared.items()]


if __name__ == "__main__":
    main()
