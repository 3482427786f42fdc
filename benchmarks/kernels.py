"""The kernels on this GPU: checked against float64, then timed beside stock torch, torch.compile and the roofline.

Without a GPU nothing is timed and nothing is written: what the compiler makes of the kernels is shown, and what a block
keeps for its backward pass, which need none. `--cpu` times the torch path all the same, and writes that.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _activations import activation_bytes, block_activations
from _environment import RESULTS, machine, write_result
from torch import nn

from ddx.bench.ahead import compile_table
from ddx.bench.case import Size
from ddx.bench.config import KernelsConfig
from ddx.bench.kernels import ON_A_GPU, run
from ddx.cli.bench_table import print_result
from ddx.cli.console import emit, emit_table
from ddx.cli.displays import make_progress


def main() -> int:
    """Measure, write the result and print it; 1 if an answer is wrong or a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="without a GPU, time the torch path and write that")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    if torch.cuda.is_available() or arguments.cpu:
        return timed(arguments.out)
    return compiled()


def timed(folder: Path) -> int:
    """The measurement; the file is whole after every row."""
    environment, kept = machine(), saved_activations()

    def save(result: dict[str, Any]) -> None:
        write_result("kernels", {**result, "saved_for_backward_of_a_block_in_X": kept}, environment, folder)

    result = run(KernelsConfig(), make_progress(), save)
    print_result(result, folder / "kernels.json")
    return 0 if all(row["gate"]["passed"] for row in result["rows"]) else 1


def compiled() -> int:
    """What can be said without a GPU."""
    rows = compile_table(90)
    emit("no CUDA device: nothing is timed or written; what the compiler makes of the kernels for one:\n")
    emit_table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])
    emit("")
    for size, kept in saved_activations().items():
        emit(f"{size}: a block keeps {kept['ours']} activations [B, N, D] for its backward pass, stock {kept['stock']}")
    return 0 if all(row["local_bytes"] == 0 for row in rows) else 1


def saved_activations() -> dict[str, dict[str, float]]:
    """What a block of the 600M model keeps, in activations of bfloat16; nothing where only torch is installed."""
    if importlib.util.find_spec("diffusers") is None:
        return {}
    from ddx.teachers.families.sana_fused import fuse

    return {
        str(size): {name: in_activations(size, prepare) for name, prepare in (("stock", None), ("ours", fuse))}
        for size in ON_A_GPU
    }


def in_activations(size: Size, prepare: Callable[[nn.Module], None] | None) -> float:
    """Three figures of bytes over bytes."""
    return round(block_activations(size, prepare=prepare).total_bytes / activation_bytes(size), 1)


if __name__ == "__main__":
    sys.exit(main())
