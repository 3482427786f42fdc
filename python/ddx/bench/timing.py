"""Medians of one call, as the host launches it and as a CUDA graph; a measurement that fails says why and is no number.

As the host launches it (`stream`): `triton.testing.do_bench`, which empties the L2 cache before each call; launches
that the host issues more slowly than the GPU runs them count. As a CUDA graph (`graph`): the call is captured once for
each of several sets of inputs, together several times the L2, and replayed: the GPU's own time, with cold data.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from ddx.bench.calls import Function, prepare
from ddx.bench.case import Case
from ddx.errors import DdxError

Call = Callable[[], Any]

WARMUP_MS, REPEAT_MS = 20, 60
CACHES, MOST_SETS = 4, 16  # sets of inputs: so many L2 caches of data together, so many sets at most
ROUNDS_ON_CPU = 7


@dataclass(frozen=True)
class Measured:
    """A median in microseconds, or why there is none."""

    us: float | None = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Times:
    """One contender of one case; `graph` is empty on a CPU."""

    stream: Measured
    graph: Measured = Measured()


class DeviceLostError(DdxError):
    """The GPU takes no work of this process any more: a kernel wrote where it must not."""


def time_function(
    case: Case,
    function: Function,
    sets: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    *,
    both_passes: bool = False,
) -> Times:
    """Return the times of `function` in the case's mode; of these sets of inputs the host launches the first."""

    def launched() -> float:
        return _stream_us(prepare(case, function, sets[0], both_passes=both_passes), device)

    with torch.no_grad(), graphs_may_be_kept():
        stream = _guarded(launched, device)
        if stream.us is None or device.type != "cuda":
            return Times(stream=stream)
        return Times(stream=stream, graph=_guarded(lambda: _graph_us(case, function, sets, both_passes), device))


def stream_time(call: Call, device: torch.device) -> Measured:
    """Return the median time of one call as the host launches it."""
    return _guarded(lambda: _stream_us(call, device), device)


def gpu_time(case: Case, sets: Sequence[Mapping[str, Tensor]], device: torch.device) -> Measured:
    """Return the median time of ours, of a backward case in both passes: as a CUDA graph, else as it is launched."""
    times = time_function(case, case.ours, sets, device, both_passes=True)
    return times.stream if times.graph.us is None else times.graph


def paired_times(calls: Mapping[str, Callable[[], Call]], *, rounds: int = ROUNDS_ON_CPU) -> dict[str, Times]:
    """Return the median wall time of each call on a CPU, taking turns so that other work meets all of them.

    `calls` prepare what is timed.
    """
    device = torch.device("cpu")
    ready: dict[str, Call] = {}
    found: dict[str, Measured] = {}
    with torch.no_grad():
        for name, prepared in calls.items():
            try:
                ready[name] = prepared()
                ready[name]()
            except Exception as error:  # a contender that cannot run is a finding, the others go on
                ready.pop(name, None)
                found[name] = _failed(error, device)
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(rounds):
            for name, call in ready.items():
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
    found |= {name: Measured(us=1e6 * statistics.median(times)) for name, times in seconds.items()}
    return {name: Times(stream=found[name]) for name in calls}


def sets_of_inputs(case: Case, device: torch.device, dtype: torch.dtype, seed: int) -> list[dict[str, Tensor]]:
    """Return as many sets of random inputs as a CUDA graph must go through before the first is out of the cache."""
    count = 1
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        count = min(math.ceil(CACHES * cache / max(case.moved_elements * dtype.itemsize, 1)), MOST_SETS)
    return [case.inputs(device, dtype, seed=seed + number) for number in range(max(count, 1))]


def peak_bytes(case: Case, function: Function, inputs: Mapping[str, Tensor], device: torch.device) -> int | None:
    """Return how much memory one call takes beyond its inputs (and what a forward pass has kept); None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.no_grad(), graphs_may_be_kept():
        call = prepare(case, function, inputs)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before


def kernels_of(call: Call, device: torch.device) -> int:
    """Return how many kernels, copies and fills one call runs on the GPU, as torch's profiler counts them."""
    call()
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type.name == "CUDA" for event in profile.events())


def _stream_us(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        from triton.testing import do_bench

        return 1e3 * float(do_bench(call, warmup=WARMUP_MS, rep=REPEAT_MS, return_mode="median"))
    call()
    seconds = []
    for _ in range(ROUNDS_ON_CPU):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1e6 * statistics.median(seconds)


def _graph_us(case: Case, function: Function, sets: Sequence[Mapping[str, Tensor]], both_passes: bool = False) -> float:
    from triton.testing import do_bench

    stream = torch.cuda.Stream()  # a backward pass runs on the stream of its forward pass: both must be captured here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls = [prepare(case, function, inputs, both_passes=both_passes) for inputs in sets]
        for call in [*calls, *calls]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with _no_garbage_collection(), torch.cuda.graph(graph, stream=stream):
        outputs = [call() for call in calls]  # all kept: each call writes memory of its own, as in a program
    graph.replay()
    torch.cuda.synchronize()
    median_ms = float(do_bench(graph.replay, warmup=WARMUP_MS, rep=REPEAT_MS, return_mode="median"))
    del outputs, graph
    return 1e3 * median_ms / len(sets)


def _guarded(measure: Callable[[], float], device: torch.device) -> Measured:
    try:
        return Measured(us=measure())
    except Exception as error:  # out of memory, no capture, no compilation: a finding about one contender
        return _failed(error, device)


def _failed(error: Exception, device: torch.device) -> Measured:
    check_alive(device, error)
    return Measured(failure=in_a_line(error))


def check_alive(device: torch.device, error: Exception) -> None:
    """Raise DeviceLostError if `error` left the GPU unusable for this process."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except Exception as lost:
        raise DeviceLostError(
            f"the GPU takes no more work after: {in_a_line(error)}",
            hint="compute-sanitizer finds the kernel; --operation NAME measures the others, each in a new process",
        ) from lost


def in_a_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0]}" if message else type(error).__name__


@contextmanager
def graphs_may_be_kept() -> Iterator[None]:
    """Let a compiled backward pass run more than once: by default it may overwrite what the forward pass saved."""
    with functorch_config.patch(donated_buffer=False):
        yield


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A kernel that is collected unloads its module, which no capture survives."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
