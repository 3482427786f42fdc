"""The update of a step: clipping, AdamW or RAdam, and two averages; ours beside what training scripts write.

ours    measure_clip, then what the trainer takes: on a GPU one pass over everything, elsewhere torch's optimiser and
        _foreach_lerp_ of the averages
lists   measure_clip, torch's optimiser and _foreach_lerp_, on a GPU too: what the one pass is there to beat
stock   clip_grad_norm_, torch's optimiser with foreach, diffusers' EMAModel.step
floor   what one kernel that reads and writes everything once would take, at this device's own rate of copying

The weights are those of SANA-600M by number and shape on a GPU, of one block of it on a processor. Contenders take
turns, and a ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result
from diffusers.training_utils import EMAModel
from torch import nn

from ddx.bench.case import Size
from ddx.bench.steps import sana_transformer
from ddx.cli.console import emit, emit_table
from ddx.kernels import dispatch
from ddx.training.config import DistillConfig
from ddx.training.ema import EMA
from ddx.training.optimizer import guarded_step, make_optimizer, measure_clip

AVERAGES = 2  # as in LCM: the target and the exported one
MOVED = 4 * (4 + 3 + 2 * AVERAGES)  # bytes a weight: gradient, weight and two moments read, all but one written
KINDS = ("adamw", "radam")


def main() -> int:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment = machine()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = 28 if device.type == "cuda" else 1
    network = sana_transformer(Size(), layers=layers, text_width=2304).to(device)
    num_weights = sum(p.numel() for p in network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    floor = num_weights * MOVED / copy_rate(device, num_weights)
    rows = []
    for kind in KINDS:
        calls = {"ours": ours(network, kind), "stock": stock(network, kind)}
        if device.type == "cuda":
            calls["lists"] = lists(network, kind)
        seconds = in_turns(calls, device)
        ratios = {f"times {name}": round(taken / seconds["ours"], 2) for name, taken in seconds.items()}
        del ratios["times ours"]
        rows.append({"optimizer": kind, "seconds": {**seconds, "floor": floor}, **ratios})
        rows[-1]["over floor"] = round(seconds["ours"] / floor, 2)
    path = write_result(
        f"optimizer-{device.type}", {"num_weights": num_weights, "rows": rows}, environment, arguments.out
    )
    emit(f"{num_weights / 1e6:.0f} M weights, {AVERAGES} averages")
    for row in rows:
        found = row["seconds"]
        emit_table([str(row["optimizer"]), "ms"], [[name, f"{1e3 * taken:.2f}"] for name, taken in found.items()])  # type: ignore[attr-defined]
        emit(", ".join(f"{name} {value}" for name, value in row.items() if name not in ("optimizer", "seconds")))
    emit(str(path))
    return 0


def ours(network: nn.Module, kind: str) -> Callable[[], Any]:
    """What the trainer does."""
    parameters = list(network.parameters())
    optimizer = make_optimizer(parameters, 1e-5, DistillConfig(optimizer=kind))
    averages = [EMA(network, half_life_images=10_000) for _ in range(AVERAGES)]
    skipped = torch.zeros((), device=parameters[0].device)

    def run() -> None:
        guarded_step(optimizer, measure_clip((p.grad for p in parameters), 1.0), skipped, averages, 16)

    return run


def lists(network: nn.Module, kind: str) -> Callable[[], Any]:
    """What the trainer does without kernels."""
    with mock.patch.object(dispatch, "backend", lambda device: "torch"):
        return ours(network, kind)


def stock(network: nn.Module, kind: str) -> Callable[[], Any]:
    """What diffusers' training scripts do."""
    made = torch.optim.AdamW if kind == "adamw" else torch.optim.RAdam
    optimizer = made(network.parameters(), lr=1e-5, foreach=True)
    averages = [EMAModel(network.parameters(), decay=0.999, foreach=True) for _ in range(AVERAGES)]
    for average in averages:
        average.to(next(network.parameters()).device)

    def run() -> None:
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for average in averages:
            average.step(network.parameters())

    return run


def copy_rate(device: torch.device, num_weights: int) -> float:
    """Bytes read and written a second by a copy as large as the weights."""
    source = torch.randn(num_weights, device=device)
    target = torch.empty_like(source)
    return 8.0 * num_weights / in_turns({"copy": lambda: target.copy_(source)}, device)["copy"]


def in_turns(calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int = 7) -> dict[str, float]:
    """Medians of single calls after three that warm up, launches included, as a training step has them."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 3):
        for name, call in calls.items():
            began = seconds(device)
            call()
            taken = seconds(device) - began
            if repeat >= 3:
                found[name].append(taken)
    return {name: statistics.median(taken) for name, taken in found.items()}


def seconds(device: torch.device) -> float:
    """The clock: of the wall when a GPU has done what it was given, of the processor otherwise."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
