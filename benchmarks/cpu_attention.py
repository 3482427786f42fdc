"""Attention in bfloat16 on a CPU that multiplies bfloat16: ddx's form beside torch's own, alone and in training steps.

    python benchmarks/cpu_attention.py

ddx differentiates it in float32 and pads its keys. The steps are those of Diff-Instruct on the bundled teacher, 16
pictures each, of `ddx distill` as it is and with that left out: the processor time of forty less that of ten.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _command import DDX, measured
from _environment import RESULTS, machine, write_result
from _students import ONE_CORE
from torch.nn import functional

from ddx.cli.console import emit
from ddx.kernels import cpu_bfloat16

ROWS, HEADS, TOKENS, CHANNELS = 16, 6, 64, 32  # those of the bundled teacher
KEYS = (11, 16, 77, 300)
REPEATS, ROUNDS = 10, 7
STOCK = """
from contextlib import nullcontext
from ddx.kernels import cpu_bfloat16
cpu_bfloat16.mode = nullcontext
from ddx.cli.main import main
main()
"""
DISTILL = (
    *("distill", "--method", "diff-instruct", "--teacher", "sana-tiny", "--preset", "sana-tiny", "--data", "rows.zarr"),
    *("--dtype", "bf16", "--batch-size", "16", "--sample-every", "0"),
)
FEW, MANY = 10, 40


def main() -> int:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    if not cpu_bfloat16.native():
        emit("this CPU does not multiply bfloat16: nothing to compare")
        return 1
    torch.set_num_threads(1)
    environment = machine()
    rows = [row(keys, differentiated) for keys in KEYS for differentiated in (False, True)]
    for measurement in (*rows, steps := training_steps()):
        emit(" ".join(f"{name}={value}" for name, value in measurement.items()))
    emit(str(write_result("cpu_attention", {"attention": rows, "steps": steps}, environment, arguments.out)))
    return 0


def row(keys: int, differentiated: bool) -> dict[str, Any]:
    """Return the milliseconds of both, medians of rounds in turns, and their ratio."""
    ours, stock = [], []
    for _ in range(ROUNDS):
        ours.append(milliseconds(cpu_bfloat16.WideAttention, keys, differentiated))
        stock.append(milliseconds(nullcontext, keys, differentiated))
    times = {"ours": statistics.median(ours), "stock": statistics.median(stock)}
    return {
        "keys": keys,
        "mode": "forward and backward" if differentiated else "forward",
        **{name: round(taken, 2) for name, taken in times.items()},
        "ratio": round(times["stock"] / times["ours"], 2),
    }


def milliseconds(form: Callable[[], AbstractContextManager[Any]], keys: int, differentiated: bool) -> float:
    """Return the processor time of one call."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(ROWS, HEADS, tokens, CHANNELS, generator=generator).bfloat16().requires_grad_(differentiated)
        for tokens in (TOKENS, keys, keys)
    )
    mask = torch.zeros(ROWS, HEADS, 1, keys, dtype=torch.bfloat16)
    with form():
        for repeat in range(-2, REPEATS):
            if repeat == 0:
                began = time.process_time()
            output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            if differentiated:
                output.backward(output.detach())
    return 1000 * (time.process_time() - began) / REPEATS


def training_steps() -> dict[str, Any]:
    """Return the processor seconds of a step of both."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measured(["scenes", "rows.parquet", "--rows", "1024"], folder, log="scenes", environment=ONE_CORE)
        measured(
            ["precompute", "rows.parquet", "--teacher", "sana-tiny", "--out", "rows.zarr"],
            folder, log="store", environment=ONE_CORE,
        )  # fmt: skip
        taken = {}
        for number in (FEW, MANY):
            for name, program in {"ours": DDX, "stock": ("-c", STOCK)}.items():
                run = [*DISTILL, "--train-steps", str(number), "--out", f"{name}-{number}"]
                cost = measured(run, folder, log=f"{name}-{number}", environment=ONE_CORE, program=program)
                taken[name, number] = cost["processor_seconds"]
    step = {name: (taken[name, MANY] - taken[name, FEW]) / (MANY - FEW) for name in ("ours", "stock")}
    return {
        **{name: round(seconds, 3) for name, seconds in step.items()},
        "ratio": round(step["stock"] / step["ours"], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
