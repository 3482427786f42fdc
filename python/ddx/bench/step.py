"""The benchmark of whole training steps: stock, compiled, ours, and ours as a CUDA graph, each from nothing.

A contender that fails, for want of memory or anything else, leaves its reason in its row, and the others go on.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddx.bench.case import Size
from ddx.bench.config import StepConfig
from ddx.bench.environment import environment
from ddx.bench.steps import STEPS, Setting, Step
from ddx.bench.timing import check_alive, in_a_line
from ddx.device import find_device
from ddx.progress import NullProgress, Progress

Save = Callable[[dict[str, Any]], None]

VARIANTS = ("eager", "compile", "ours", "ours, graph")
GOALS = {
    "lcm": {"eager": 1.5, "compile": 1.3},
    "sid": {"eager": 1.6, "compile": 1.3},
    "scm": {"eager": 2.5, "compile": 1.8},
}
"""How many steps ours should take in the time of one."""

# What a kernel's name tells of its work; the first that fits counts.
KINDS = {
    "ours": (
        "ddx",
        "linear_attention",
        "glumbconv",
        "depthwise",
        "residual",
        "modulate",
        "rms_norm",
        "_loss",
    ),
    "softmax attention": ("flash", "fmha", "cudnn_generated", "attention", "softmax"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "convolutions": ("conv", "dgrad", "wgrad", "nchw", "nhwc"),
    "optimiser": ("adam", "multi_tensor"),
}


@dataclass(kw_only=True)
class Row:
    """One variant of one step: what it took, or why it did not run."""

    step: str
    size: str
    variant: str
    seconds: float | None = None
    peak_bytes: int | None = None
    shares: dict[str, float] | None = None
    failure: str | None = None

    def to_dict(self, rows: list[Row]) -> dict[str, Any]:
        """Return it as JSON holds it, with the ratios to the other variants of the same step and size."""
        found = {key: value for key, value in vars(self).items() if value is not None}
        if self.seconds and self.variant.startswith("ours"):
            for other in rows:
                if (
                    (other.step, other.size) == (self.step, self.size)
                    and other.seconds
                    and other.variant in GOALS[self.step]
                ):
                    found[f"times {other.variant}"] = round(other.seconds / self.seconds, 3)
                    found[f"goal over {other.variant}"] = GOALS[self.step][other.variant]
        return found


def run(config: StepConfig, progress: Progress | None = None, save: Save | None = None) -> dict[str, Any]:
    """Return the result as JSON holds it: environment, notes, rows. `save` gets it after every row."""
    began = time.monotonic()
    progress, save = progress or NullProgress(), save or (lambda result: None)
    device = find_device("auto")
    on_gpu = device.type == "cuda"
    rows: list[Row] = []
    result: dict[str, Any] = {"environment": environment(device), "notes": _notes(on_gpu), "rows": []}
    todo = [
        (name, setting, variant)
        for setting in _settings(config, device)
        for name in config.method or tuple(STEPS)
        for variant in (VARIANTS if on_gpu else ("eager", "ours"))
        if variant != "compile" or config.compile is not False
    ]
    progress.start("steps", len(todo), "variant")
    for name, setting, variant in todo:
        row = Row(step=name, size=str(setting.size), variant=variant)
        rows.append(row)
        if time.monotonic() - began > 60 * config.minutes:
            row.failure = f"left out: {config.minutes:g} minutes are over"
        else:
            measure(row, setting, config.steps)
        progress.log(f"{name} {setting.size}, {variant}: " + (row.failure or f"{row.seconds:.4g} s a step"))
        progress.advance()
        result["rows"] = [each.to_dict(rows) for each in rows]
        result["seconds"] = round(time.monotonic() - began, 1)
        save(result)
    progress.finish()
    return result


def measure(row: Row, setting: Setting, steps: int) -> None:
    """Build the step of `row`'s variant, and fill in what it takes."""
    device = setting.device
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        ours = row.variant.startswith("ours")
        own = Setting(**{**vars(setting), "ours": ours, "compiled": row.variant == "compile"})
        step = STEPS[row.step](own)
        call = _captured(step) if row.variant.endswith("graph") else step.run
        for _ in range(3):
            loss = call()
        if not bool(torch.isfinite(loss)):
            raise ArithmeticError(f"the loss is {float(loss)}")
        row.seconds = _median_seconds(call, steps, device)
        if device.type == "cuda":
            row.peak_bytes = torch.cuda.max_memory_allocated(device)
            row.shares = shares(call)
    except Exception as error:  # out of memory, no capture, no compilation: a finding about one variant
        check_alive(device, error)
        row.failure = in_a_line(error)
    finally:
        torch._dynamo.reset()


def shares(call: Callable[[], Tensor]) -> dict[str, float]:
    """Return the share of the GPU's time in one step by kind of kernel, as torch's profiler sees it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profile.events():
        if event.device_type.name == "CUDA":
            spent[_kind(event.name.lower())] += event.device_time
    total = sum(spent.values()) or 1.0
    return {kind: round(value / total, 4) for kind, value in spent.most_common()}


def _kind(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "everything else")


def _captured(step: Step) -> Callable[[], Tensor]:
    """Return the step as a CUDA graph: its networks, batch and optimiser stay where they are, noise is drawn anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step.run()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def _median_seconds(call: Callable[[], Tensor], steps: int, device: torch.device) -> float:
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _settings(config: StepConfig, device: torch.device) -> list[Setting]:
    if device.type == "cuda":
        sizes = [Size(batch=config.batch_size, side=resolution // 32) for resolution in config.resolution]
        return [Setting(size=size, device=device, ours=False) for size in sizes]
    tiny = Size(batch=2, side=8, heads=5, cross_heads=2, cross_head_dim=80, text_tokens=32)
    return [Setting(size=tiny, device=device, ours=False, layers=2, text_width=64)]


def _notes(on_gpu: bool) -> list[str]:
    return [] if on_gpu else ["no CUDA device: the torch path, in float32, at a tiny size"]
