"""What drawing takes of a GPU's memory, ddx beside diffusers' ways to offload: counted on tensors without data.

    python benchmarks/draw_memory.py
    python benchmarks/draw_memory.py --cases sana-600m:512:400MB z-image:1024:2GB

No GPU and no weights are needed. Components are counted one after another, as all these ways have them on the device,
in bfloat16, for one picture with guidance, and the peak is the largest. The peers are diffusers' own hooks: group
offloading by leaves with streams on every component; its first pass, in which nothing comes in ahead, has the
residency of sequential offloading; and whole components in turns, as model offloading has them. None of them offloads
the maps of a decoder, and `enable_tiling`, which does without them, changes the picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _environment import machine, write_result

from ddx.memory.amount import parse_amount
from ddx.memory.draw_count import VAE, DrawCounter
from ddx.memory.draw_plan import fit
from ddx.memory.fake_gpu import GPU
from ddx.offload.keeping import LEAVES, TURNS
from ddx.teachers.registry import configs_of

CASES = (
    "sana-600m:512:400MB",
    "sana-600m-1024:1024:800MB",
    "sd15:512:400MB",
    "sd15:1024:800MB",
    "sdxl:512:400MB",
    "sdxl:1024:800MB",
    "z-image:512:2GB",
    "z-image:1024:2GB",
)
PEERS = ("model offload", "group offload", "sequential offload")


def main() -> None:
    """Count, case by case, and write the result after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="TEACHER:PIXELS:MEMORY")
    parser.add_argument("--name", default="draw_memory", help="name of the result's file")
    arguments = parser.parse_args()
    environment, rows = machine(), []
    for case in arguments.cases:
        teacher, pixels, memory = case.split(":")
        rows.append(count(teacher, int(pixels), memory))
        where = write_result(arguments.name, {"rows": rows}, environment)
    print(f"wrote {where}")
    print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as docs/memory.md has them, in MB."""
    print(f"| teacher | pixels | whole | {' | '.join(PEERS)} | `--memory` | its peak | in |")
    print("|---|---:|" + "---:|" * (len(PEERS) + 3) + "---|")
    for row in rows:
        cells = [f"{max(row[name].values()) / 1e6:,.0f}" for name in PEERS]
        ours = row["ddx"]
        peak = max(part["peak"] for part in ours.values())
        holds = max(ours, key=lambda part: ours[part]["peak"])
        shown = [f"`{row['teacher']}`", row["pixels"], f"{row['whole'] / 1e6:,.0f}", *cells, row["memory"]]
        print(f"| {' | '.join(map(str, shown))} | {peak / 1e6:,.0f} | {holds} |")


def count(teacher: str, pixels: int, memory: str) -> dict[str, Any]:
    """Return the peaks of one teacher at one size in bytes, by component and way."""
    counter = DrawCounter(configs_of(teacher, device=GPU, dtype="bf16", resolution=pixels), guided=True)
    plan = fit(counter, parse_amount(memory), lambda text: print(f"{teacher} {pixels}: {text}", flush=True))
    ours = {name: {"how": p.how, "maps": p.maps, "peak": p.count.peak} for name, p in plan.parts.items()}
    turns = {part: counter.count(part, TURNS) for part in counter.parts}
    weights = {part: found.weights for part, found in turns.items()}
    beside = max(found.peak - weights[part] for part, found in turns.items())
    group = {part: counter.count(part, LEAVES, tables=False) for part in counter.parts}
    row = {
        "teacher": teacher,
        "pixels": pixels,
        "memory": memory,
        "ddx": ours,
        "weights": weights,
        "whole": sum(weights.values()) + beside,
        "model offload": {part: found.peak for part, found in turns.items()},
        "group offload": {part: found.peak for part, found in group.items()},
        "sequential offload": {part: found.first for part, found in group.items()},
    }
    shown = ", ".join(f"{name} {max(row[name].values()) / 1e6:,.0f}" for name in PEERS)
    print(
        f"{teacher} {pixels}: ddx {plan.peak / 1e6:,.0f}, {shown} MB; decoder {turns[VAE].peak / 1e6:,.0f}", flush=True
    )
    return row


if __name__ == "__main__":
    main()
