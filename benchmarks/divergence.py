"""Large batches and scaled rates, with and without warm-up and clipping: an old question about Stable Diffusion on 4 to
32 nodes, asked of the smallest ground there is.

    python benchmarks/divergence.py

LCM students of a mixture that is known exactly, by ddx's own trainer and AdamW, all with the same number of steps. A
node is 16 points of the batch: a step over N nodes is, but for rounding, one step on the batch of all N. The rate
follows the batch as `--lr-scaling` lets it, by the same code. Rows that the result file has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result

from ddx.bench.mixtures.grounds import GROUNDS
from ddx.bench.mixtures.run import distil
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.training.batch_scaling import follow_batch
from ddx.training.config import DistillConfig

NODES = (1, 4, 8, 16, 32)
SCALINGS = ("none", "sqrt", "linear")
POINTS, STEPS, RATE = 16, 150, 1e-3  # points of a node; the rate of one node
CARE = {True: {"warmup_steps": 50, "clip_norm": 1.0}, False: {"warmup_steps": 0, "clip_norm": 0.0}}
SETTINGS: dict[str, Any] = {
    **{"optimizer": "adamw", "train_steps": STEPS, "lr_schedule": "constant", "ema_half_life": 0.0},
    **{"solver_steps": 4, "solver_substeps": 1, "solver_order": 1, "target_decay": 0.0, "loss": "l2"},
    **{"guidance_min": 1.0, "guidance_max": 1.0},
}
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "divergence.svg"
COLOURS = {"none": "#3d9a6a", "sqrt": "#2a6fb0", "linear": "#c2506a"}


def main() -> None:
    """Train, write the result after every student, and draw the figure."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    environment, rows = machine(), rows_so_far()
    known = {(row["nodes"], row["scaling"], row["care"]) for row in rows}
    teacher = GROUNDS["flow"].teacher()
    for nodes in reversed(NODES):
        for scaling in SCALINGS if nodes > 1 else SCALINGS[:1]:
            for care in (False, True):
                if (nodes, scaling, care) not in known:
                    rows.append(measure(teacher, nodes, scaling, care))
                    write_result("divergence", {"rows": rows}, environment)
                    print(rows[-1], flush=True)
    FIGURE.write_text(figure(rows), encoding="utf-8")


def rows_so_far() -> list[dict[str, Any]]:
    """Return the rows of an earlier call."""
    path = RESULTS / "divergence.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["result"]["rows"] if path.is_file() else []
    return rows


def measure(teacher: MixtureTeacher, nodes: int, scaling: str, care: bool) -> dict[str, Any]:
    """Return the losses of the first and the last fifty steps, and the share of points off the modes in four steps."""
    config = DistillConfig(method="lcm", batch_size=POINTS * nodes, learning_rate=RATE, lr_scaling=scaling)
    rate = follow_batch(config, POINTS, ())[0].learning_rate
    batch = {"batch_size": config.batch_size, "learning_rate": rate}
    student = distil("lcm", teacher, **SETTINGS, **batch, **CARE[care])
    losses = [found.get("loss") for found in student.history]
    return {
        **{"nodes": nodes, "scaling": scaling, "care": care, "rate": rate},
        **{"first": losses[0], "last": losses[-1], "off_mode": student.gate(4).off_mode},
        "seconds": round(student.seconds, 1),
    }


def figure(rows: list[dict[str, Any]]) -> str:
    """Return the last loss over nodes, both logarithmic: solid with warm-up and clipping, dashed without."""
    width, height, left, top = 640, 340, 70, 24
    wide, high = width - left - 190, height - top - 56
    values = [row["last"] for row in rows if row["last"] and math.isfinite(row["last"])]
    low, top_value = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def place(nodes: int, value: float | None) -> tuple[float, float]:
        exponent = top_value if value is None or not math.isfinite(value) else math.log10(value)
        share = (exponent - low) / max(top_value - low, 1)
        return left + wide * math.log2(nodes) / 5, top + high * (1 - share)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for exponent in range(low, top_value + 1):
        y = place(1, 10.0**exponent)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{left + wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>')
    for nodes in NODES:
        parts.append(f'<text x="{place(nodes, 1.0)[0]:.1f}" y="{top + high + 20}" text-anchor="middle">{nodes}</text>')
    parts.append(f'<text x="{left + wide / 2}" y="{height - 12}" text-anchor="middle">nodes of {POINTS} points</text>')
    parts.append(f'<text x="{left}" y="14">loss of the last fifty of {STEPS} steps</text>')
    for number, (scaling, care) in enumerate((scaling, care) for scaling in SCALINGS for care in (False, True)):
        chosen = [row for row in rows if row["care"] == care and (row["scaling"] == scaling or row["nodes"] == 1)]
        points = [place(row["nodes"], row["last"]) for row in sorted(chosen, key=lambda row: row["nodes"])]
        dashes = "" if care else ' stroke-dasharray="5 4"'
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{line}" fill="none" stroke="{COLOURS[scaling]}" stroke-width="2"{dashes}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[scaling]}"/>' for x, y in points]
        y, x = top + 16 + 20 * number, left + wide + 14
        parts.append(f'<path d="M{x} {y - 4}h24" stroke="{COLOURS[scaling]}" stroke-width="2"{dashes}/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{scaling}, {"with care" if care else "without"}</text>')
    parts.append(f'<text x="{left + wide + 14}" y="{top + 16 + 20 * 6 + 8}">care: warm-up of 50 steps,</text>')
    parts.append(f'<text x="{left + wide + 14}" y="{top + 16 + 20 * 7 + 2}">gradients clipped at norm 1</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
