"""Times on a CPU: what is timed, and that a failure is a reason and never a number."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench_cases import stock, tanh_case
from ddx.bench import timing
from ddx.bench.calls import prepare
from ddx.bench.roofline import Roofline, measure_roofline

CPU = torch.device("cpu")


def test_of_a_backward_case_the_backward_pass_alone_is_timed() -> None:
    calls = []

    def ours(x: Tensor, w: Tensor) -> Tensor:
        calls.append("forward")
        return stock(x, w)

    case = tanh_case("backward", ours)
    inputs = case.inputs(CPU, torch.float32)
    with torch.no_grad():
        call = prepare(case, ours, inputs)
        assert [gradient.shape for gradient in call()] == [(8, 16), (16,)]
        call()
        assert calls == ["forward"]
        both = prepare(case, ours, inputs, both_passes=True)
        both()
        assert calls == ["forward"] * 2


def test_a_contender_that_fails_is_a_reason_and_the_others_are_timed() -> None:
    def broken(x: Tensor, w: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nand more")

    case = tanh_case()
    inputs = case.inputs(CPU, torch.float32)
    functions: dict[str, Any] = {"ours": broken, "eager": case.eager}
    found = timing.paired_times({name: partial(prepare, case, call, inputs) for name, call in functions.items()})
    assert found["ours"].stream == timing.Measured(failure="RuntimeError: no such kernel")
    assert found["eager"].stream.us is not None and found["eager"].stream.us > 0
    failed = timing.time_function(case, broken, [inputs], CPU)
    assert failed.stream.us is None and failed.graph == timing.Measured()


def test_the_median_is_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS_ON_CPU", 3)
    clock, taken = [0.0], iter([9.0, 0.5, 0.25, 0.125])  # seconds, the first of them before it is timed
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    measured = timing.stream_time(lambda: clock.append(clock.pop() + next(taken)), CPU)
    assert measured.us == 250_000


def test_the_roofline_is_the_larger_of_two_times() -> None:
    roofline = Roofline(
        copy_bytes_per_s=100.0, product_flops_per_s=1000.0, product_dtype="float32", copied_bytes=1, product_size=1
    )
    assert roofline.seconds(moved_bytes=200, flops=500) == 2.0
    assert roofline.seconds(moved_bytes=20, flops=500) == 0.5


def test_the_roofline_of_this_machine_is_plausible() -> None:
    found = measure_roofline(CPU)
    assert 0 < found.copy_bytes_per_s < 1e13
    assert 0 < found.product_flops_per_s < 1e14
    assert found.product_dtype == "float32"


def test_a_graph_holds_a_call_for_each_set_and_is_timed_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture and replay on a pretended GPU: the order of things, and what the median is divided by."""
    story: list[str] = []

    class Graph:
        def replay(self) -> None:
            story.append("replay")

    @contextmanager
    def capture(graph: Graph, stream: Any) -> Iterator[None]:
        assert not gc.isenabled()
        story.append("capture")
        yield
        story.append("captured")

    def ours(x: Tensor, w: Tensor) -> Tensor:
        story.append("call")
        return stock(x, w)

    def do_bench(call: Any, **options: Any) -> float:
        assert options["return_mode"] == "median"
        call()
        return 0.6

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(cuda, "current_stream", lambda: None)
    monkeypatch.setattr(cuda, "synchronize", lambda: None)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", capture)
    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    case = tanh_case("forward", ours)
    sets = [case.inputs(CPU, torch.float32, seed=seed) for seed in (0, 1, 2)]
    with torch.no_grad():
        assert timing._graph_us(case, ours, sets) == pytest.approx(200.0)
    assert story == ["call"] * 6 + ["capture"] + ["call"] * 3 + ["captured", "replay", "replay"]
    assert gc.isenabled()
