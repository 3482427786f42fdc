"""The benchmark of the kernels: every case is checked, then timed beside what stands in its place without ddx.

In three passes over the rows, so that a run that is stopped has what matters: eager and ours first; then
`torch.compile`, which takes most of the time and ends with the time given; then the number of launches, last because a
profiler that has once run may slow what is launched after it. Everything is saved after every row.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from ddx.bench import timing
from ddx.bench.calls import compiled, prepare
from ddx.bench.case import Case, Size
from ddx.bench.config import KernelsConfig
from ddx.bench.environment import clocks, environment
from ddx.bench.gates import gate
from ddx.bench.operations import chosen_cases
from ddx.bench.roofline import Roofline, measure_roofline
from ddx.bench.row import BOTH, Row
from ddx.device import find_device
from ddx.errors import UsageError
from ddx.kernels import dispatch
from ddx.progress import NullProgress, Progress

ON_A_GPU = (Size(side=16), Size(side=32))
ON_A_CPU = (Size(batch=2, side=8, heads=5, cross_heads=2, text_tokens=77),)

Save = Callable[[dict[str, Any]], None]


def run(config: KernelsConfig, progress: Progress | None = None, save: Save | None = None) -> dict[str, Any]:
    """Return the result as JSON holds it: environment, roofline, notes, rows. `save` gets it after every row.

    Raises UsageError for an operation that does not exist, or where Triton's interpreter would be timed, and
    DeviceLostError when a kernel has broken the GPU for this process.
    """
    began = time.monotonic()
    progress, save = progress or NullProgress(), save or (lambda result: None)
    device = find_device("auto")
    on_gpu = device.type == "cuda"
    if not on_gpu and dispatch.backend(device.type) == "triton":
        raise UsageError("Triton's interpreter is for tests, not for timing", hint="unset DDX_KERNELS")
    sizes, dtype = (ON_A_GPU, torch.bfloat16) if on_gpu else (ON_A_CPU, torch.float32)
    pairs = [(case, size) for size in sizes for case in chosen_cases(size, config.operation)]
    found_environment = environment(device)
    roofline = measure_roofline(device)
    rows: list[Row] = []
    deadline = began + 60 * config.minutes
    result: dict[str, Any] = {
        "environment": {**found_environment, "clocks_after_the_roofline": clocks(device)},
        "roofline": asdict(roofline),
        "notes": notes(device),
    }

    def publish() -> None:
        result["rows"] = [row.to_dict() for row in rows]
        result["seconds"] = round(time.monotonic() - began, 1)
        save(result)

    publish()
    progress.start("kernels", len(pairs), "case")
    for case, size in pairs:
        if time.monotonic() > deadline:
            result["notes"].append(f"{len(pairs) - len(rows)} cases were left out: {config.minutes:g} minutes are over")
            break
        rows.append(measure(case, size, device, dtype, roofline))
        progress.log(in_words(rows[-1]))
        progress.advance()
        publish()
    if on_gpu if config.compile is None else config.compile:
        add_compiled(rows, device, deadline, progress, publish)
    if on_gpu:
        count_launches(rows, device, deadline)
    progress.finish()
    publish()
    return result


def notes(device: torch.device) -> list[str]:
    """Return what a reader must know before any number."""
    if device.type != "cuda":
        return ["no CUDA device: what is timed is the torch path, in float32, at a tiny size that caches hold"]
    found = []
    if dispatch.backend(device.type) == "torch":
        found.append("DDX_KERNELS=torch: what is timed as ours is the torch path")
    name = torch.cuda.get_device_name(device)
    if "H200" not in name:
        found.append(f"the targets were set for an H200; this is {name}")
    return found


def measure(case: Case, size: Size, device: torch.device, dtype: torch.dtype, roofline: Roofline) -> Row:
    """Check one case on inputs drawn for it, then time ours and eager; a case that is wrong gets no time."""
    seed = random.SystemRandom().randrange(2**31)
    verdict = gate(case, device, dtype, seed)
    row = Row(case=case, size=size, dtype=dtype, roofline=roofline, judged=device.type == "cuda", verdict=verdict)
    if not verdict.passed:
        return row
    sets = timing.sets_of_inputs(case, device, dtype, seed)
    contenders = {"ours": case.ours, "eager": case.eager}
    passes = (False, True) if case.mode == "backward" else (False,)
    if device.type == "cuda":
        for both in passes:
            for name, function in contenders.items():
                row.times[name + BOTH * both] = timing.time_function(case, function, sets, device, both_passes=both)
        again = timing.time_function(case, case.ours, sets, device)
        row.peak_bytes = {
            name: timing.peak_bytes(case, contenders[name], sets[0], device) for name in ("ours", "eager")
        }
    else:
        row.times = timing.paired_times(
            {
                name + BOTH * both: partial(prepare, case, function, sets[0], both_passes=both)
                for both in passes
                for name, function in contenders.items()
            }
            | {"again": partial(prepare, case, case.ours, sets[0])}
        )
        again = row.times.pop("again")
    row.spread = _spread(row.times["ours"], again)
    if case.mode == "dual":
        bare = [case.without_tangents(inputs) for inputs in sets]
        row.times["forward"] = timing.time_function(case, case.forward or case.stock, bare, device)
    return row


def add_compiled(
    rows: Sequence[Row], device: torch.device, deadline: float, progress: Progress, publish: Callable[[], None]
) -> None:
    """Time `torch.compile` of stock in each row that passed, as long as one more compilation fits in the time left.

    The rows that have a target for it come first.
    """
    longest = 0.0
    timed = [row for row in rows if row.verdict.passed]
    timed.sort(key=lambda row: row.target is None or row.target.compile is None)
    progress.start("torch.compile", len(timed), "case")
    for row in timed:
        if time.monotonic() + longest > deadline:
            row.times["compile"] = timing.Times(stream=timing.Measured(failure="no time was left to compile"))
        else:
            began = time.monotonic()
            function = compiled(row.case)
            with timing.graphs_may_be_kept():
                verdict = gate(row.case, device, row.dtype, row.verdict.seed, function)
            row.compile_s = round(time.monotonic() - began, 2)
            if verdict.passed:
                sets = timing.sets_of_inputs(row.case, device, row.dtype, row.verdict.seed)
                for both in (False, True) if row.case.mode == "backward" else (False,):
                    row.times["compile" + BOTH * both] = timing.time_function(
                        row.case, function, sets, device, both_passes=both
                    )
            else:
                row.times["compile"] = timing.Times(stream=timing.Measured(failure=verdict.reason))
            longest = max(longest, time.monotonic() - began)
        progress.advance()
        publish()


def count_launches(rows: Sequence[Row], device: torch.device, deadline: float) -> None:
    """Count the kernels of one call of ours and of eager, with torch's profiler; None where it does not work."""
    for row in rows:
        if row.verdict.passed and time.monotonic() < deadline:
            inputs = row.case.inputs(device, row.dtype)
            for name, function in (("ours", row.case.ours), ("eager", row.case.eager)):
                try:
                    with torch.no_grad():
                        call = prepare(row.case, function, inputs, both_passes=bool(row.passes))
                        row.launches[name] = timing.kernels_of(call, device)
                except Exception as error:  # a profiler that does not work here takes nothing from the times
                    timing.check_alive(device, error)
                    row.launches[name] = None


def in_words(row: Row) -> str:
    """Return a row in a line, for the log."""
    if not row.verdict.passed or row.gpu_us is None:
        return f"{row.name}: {'; '.join(row.failures)}"
    ratio = row.judged_ratio("eager" + row.passes)
    beside = f", {ratio:.2f} times as fast as eager" if ratio else ""
    return f"{row.name}: {row.gpu_us:.1f} µs{beside}"


def _spread(first: timing.Times, second: timing.Times) -> float | None:
    """Return the difference of two measurements of one thing, as a share of the smaller."""
    for one, other in ((first.graph.us, second.graph.us), (first.stream.us, second.stream.us)):
        if one and other:
            return abs(one - other) / min(one, other)
    return None
