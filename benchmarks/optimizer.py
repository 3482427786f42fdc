"""The update of a step: clipping, AdamW and the exported average, ours beside what training scripts write.

ours    measure_clip, fused AdamW that divides by the clip's divisor as it reads, _foreach_lerp_ of the average
stock   clip_grad_norm_, AdamW with foreach, diffusers' EMAModel.step
floor   what one kernel that reads and writes everything once would take, at this device's own rate of copying

A hand-written kernel for all of it is worth having where ours takes 1.2 times the floor or more. The weights are those
of SANA-600M by number and shape on a GPU, of one block of it on a processor.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result
from diffusers import SanaTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import nn

from ddx.cli.console import emit, emit_table
from ddx.training.ema import EMA
from ddx.training.optimizer import guarded_step, measure_clip

MOVED = 4 * (5 + 4)  # bytes a weight: weight, gradient, two moments and average read; all but the gradient written


def main() -> int:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment = machine()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = 28 if device.type == "cuda" else 1
    seconds = {}
    for name, make in (("ours", ours), ("stock", stock)):
        network = SanaTransformer2DModel(num_layers=layers).to(device)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        seconds[name] = median_seconds(make(network), device)
        num_weights = sum(p.numel() for p in network.parameters())
        del network
    floor = num_weights * MOVED / copy_rate(device, num_weights)
    result = {
        "num_weights": num_weights,
        "seconds": {**seconds, "floor": floor},
        "ours_times_stock": round(seconds["stock"] / seconds["ours"], 2),
        "ours_over_floor": round(seconds["ours"] / floor, 2),
    }
    path = write_result(f"optimizer-{device.type}", result, environment, arguments.out)
    emit_table(["update", "ms"], [[k, f"{1e3 * v:.2f}"] for k, v in result["seconds"].items()])  # type: ignore[attr-defined]
    emit(
        f"{num_weights / 1e6:.0f} M weights: {result['ours_times_stock']} × stock, {result['ours_over_floor']} × floor"
    )
    emit(str(path))
    return 0


def ours(network: nn.Module) -> Callable[[], Any]:
    """What the trainer does."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    average = EMA(network, half_life_images=10_000)
    skipped = torch.zeros((), device=next(network.parameters()).device)

    def run() -> None:
        guarded_step(optimizer, measure_clip((p.grad for p in network.parameters()), 1.0), skipped)
        average.update(16)

    return run


def stock(network: nn.Module) -> Callable[[], Any]:
    """What diffusers' training scripts do."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, foreach=True)
    average = EMAModel(network.parameters(), decay=0.999, foreach=True)
    average.to(next(network.parameters()).device)

    def run() -> None:
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.step(network.parameters())

    return run


def copy_rate(device: torch.device, num_weights: int) -> float:
    """Bytes read and written a second by a copy as large as the weights."""
    source = torch.randn(num_weights, device=device)
    target = torch.empty_like(source)
    return 8.0 * num_weights / median_seconds(lambda: target.copy_(source), device)


def median_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 11) -> float:
    """Median of single calls after three that warm up, launches included, as a training step has them."""
    found = []
    for repeat in range(repeats + 3):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= 3:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
