"""The driver: a row a case, saved as they come; a wrong case has no time; and what targets say of a row."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench_cases import stock, tanh_case
from ddx.bench import kernels, operations
from ddx.bench.config import KernelsConfig
from ddx.bench.gates import Verdict
from ddx.bench.kernels import ON_A_CPU, measure, run
from ddx.bench.operations import chosen_cases
from ddx.bench.roofline import Roofline
from ddx.bench.row import Row
from ddx.bench.targets import TARGETS, target_of
from ddx.bench.timing import Measured, Times
from ddx.cli.bench_table import header, lines
from ddx.errors import UsageError
from ddx.kernels import dispatch

CPU = torch.device("cpu")
ROOFLINE = Roofline(
    copy_bytes_per_s=4e12, product_flops_per_s=8e14, product_dtype="bfloat16", copied_bytes=1, product_size=1
)


def wrong(x: Tensor, w: Tensor) -> Tensor:
    return stock(x, w) if x.dtype == torch.float64 else 1.1 * stock(x, w)


def test_a_wrong_case_says_so_and_has_no_time() -> None:
    row = measure(tanh_case("forward", wrong), ON_A_CPU[0], CPU, torch.float32, ROOFLINE)
    told = row.to_dict()
    assert told["times"] == told["times_as_fast"] == {}
    assert told["bytes_per_s"] is None and told["roofline_share"] is None
    assert told["failures"][0].startswith("not timed: output 0: relative error 0.1, allowed")
    assert [line[-1] for line in lines(told)] == ["wrong: not timed"]
    assert "not timed" in kernels.in_words(row)


def test_results_are_saved_after_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [tanh_case("forward"), tanh_case("forward", wrong), tanh_case("backward"), tanh_case("dual")]
    monkeypatch.setattr(operations, "all_cases", lambda size: cases)
    saved: list[dict[str, Any]] = []
    result = run(KernelsConfig(), save=lambda result: saved.append(json.loads(json.dumps(result))))
    assert [len(each["rows"]) for each in saved] == [0, 1, 2, 3, 4, 4]
    assert saved[-1] == json.loads(json.dumps(result))
    assert [row["gate"]["passed"] for row in result["rows"]] == [True, False, True, True]
    assert list(result["rows"][2]["times"]) == ["ours", "eager", "ours, both passes", "eager, both passes"]
    assert list(result["rows"][3]["times"]) == ["ours", "eager", "forward"]
    assert result["notes"][0].startswith("no CUDA device: what is timed is the torch path")
    assert all(row["missed"] is None for row in result["rows"])


def test_stock_is_compiled_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only calls: what is tested is that its answer and its time stand in the row."""
    monkeypatch.setattr(operations, "all_cases", lambda size: [tanh_case("backward")])
    monkeypatch.setattr(kernels, "compiled", lambda case: case.stock)
    (row,) = run(KernelsConfig(compile=True))["rows"]
    assert row["times_as_fast"]["compile"]["stream"] > 0
    assert row["times"]["compile, both passes"]["stream"]["us"] > 0
    monkeypatch.setattr(kernels, "compiled", lambda case: wrong)
    (row,) = run(KernelsConfig(compile=True))["rows"]
    assert row["failures"][0].startswith("compile, as launched: output 0: relative error")


def test_what_no_time_is_left_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "all_cases", lambda size: [tanh_case(), tanh_case()])
    result = run(KernelsConfig(minutes=1e-9))
    assert result["rows"] == []
    assert result["notes"][-1].startswith("2 cases were left out")


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        chosen_cases(ON_A_CPU[0], ["rmsnorm"])
    assert error.value.hint == "did you mean `--operation rms_norm`?"
    assert {case.operation for case in chosen_cases(ON_A_CPU[0], ["rms_norm"])} == {"rms_norm"}


def test_the_interpreter_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "backend", lambda device_type: "triton")
    with pytest.raises(UsageError, match="interpreter"):
        run(KernelsConfig())


def row_of(operation: str, us: dict[str, float], **changes: Any) -> Row:
    """A row as a GPU would give it, of a case that moves 40 MB, which takes 10 µs at best."""
    case = replace(tanh_case(changes.pop("mode", "forward")), operation=operation, moved_elements=20_000_000)
    times = {name: Times(stream=Measured(us=value + 30), graph=Measured(us=value)) for name, value in us.items()}
    given: dict[str, Any] = {"size": ON_A_CPU[0], "dtype": torch.bfloat16, "roofline": ROOFLINE, "judged": True}
    return Row(case=case, verdict=Verdict(passed=True, seed=0), times=times, **{**given, **changes})


def test_targets_are_met_or_missed_by_so_much() -> None:
    good = row_of("rms_norm", {"ours": 12.0, "eager": 36.0, "compile": 12.0})
    assert good.roofline_share == pytest.approx(10 / 12)
    assert good.missed == []
    slow = row_of("rms_norm", {"ours": 20.0, "eager": 36.0, "compile": 12.0})
    assert slow.missed == ["eager 1.80× of 2.5×", "compile 0.60× of 0.95×", "roofline 50% of 80%"]
    assert [line[-1] for line in lines(slow.to_dict())] == [f"missed: {', '.join(slow.missed)}"]
    assert row_of("rms_norm", {"ours": 20.0}, judged=False).missed is None
    assert row_of("something else", {"ours": 20.0}).missed is None


def test_graphs_are_judged_and_launches_only_where_there_is_no_graph() -> None:
    row = row_of("rms_norm", {"ours": 10.0, "eager": 40.0})
    assert (row.judged_ratio("eager"), row.times_as_fast("eager", "stream")) == (4.0, 70 / 40)
    row.times["eager"] = Times(stream=Measured(us=80.0), graph=Measured(failure="it synchronises"))
    assert row.judged_ratio("eager") == 2.0
    assert row.failures == ["eager, as a graph: it synchronises"]


def test_losses_are_judged_by_both_passes_and_their_launches() -> None:
    us = {"ours": 1.0, "eager": 2.0, "ours, both passes": 10.0, "eager, both passes": 60.0}
    row = row_of("sid", us, mode="backward")
    assert (row.gpu_us, row.missed) == (10.0, [])
    row.launches = {"ours": 4, "eager": 20}
    assert row.missed == ["4 launches, not 3"]
    alone, both = lines(row.to_dict())
    assert (alone[1], alone[4], alone[-1]) == ("backward", "2.00 (1.03)", "")
    assert (both[1], both[4], both[-1]) == ("fwd + bwd", "6.00 (2.25)", "missed: 4 launches, not 3")


def test_a_dual_is_held_against_a_forward_pass() -> None:
    row = row_of("dual_linear", {"ours": 25.0, "eager": 40.0, "forward": 10.0}, mode="dual")
    assert row.missed == ["2.50 forward passes, not 2.1"]


def test_every_target_is_found_by_name() -> None:
    assert target_of("rms_norm", "forward") is TARGETS["rms_norm", "forward"]
    assert target_of("relu_linear_attention with norm", "dual") is TARGETS["relu_linear_attention", "dual"]
    assert target_of("gated_residual_norm_modulate", "dual") is TARGETS["gated_residual_norm_modulate", "dual"]
    assert target_of("tanh", "forward") is None


def test_on_a_gpu_each_contender_is_timed_with_cold_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """What calls what, on a pretended GPU."""
    asked: list[tuple[str, bool]] = []
    names = {stock: "stock"}

    def time_function(case: Any, function: Any, sets: Any, device: Any, *, both_passes: bool = False) -> Times:
        asked.append((names.get(function, "ours"), both_passes))
        return Times(stream=Measured(us=20.0), graph=Measured(us=10.0 + len(asked)))

    monkeypatch.setattr(kernels, "gate", lambda *arguments: Verdict(passed=True, seed=1))
    monkeypatch.setattr(kernels.timing, "time_function", time_function)
    monkeypatch.setattr(kernels.timing, "sets_of_inputs", lambda *arguments: [{}])
    monkeypatch.setattr(kernels.timing, "peak_bytes", lambda *arguments: 7)
    case = tanh_case("backward", lambda x, w: stock(x, w))
    row = measure(case, ON_A_CPU[0], torch.device("cuda"), torch.bfloat16, ROOFLINE)
    assert asked == [("ours", False), ("stock", False), ("ours", True), ("stock", True), ("ours", False)]
    assert (row.gpu_us, row.peak_bytes) == (11.0, {"ours": 7, "eager": 7})
    assert row.spread == pytest.approx(4 / 11)
    assert row.roofline_share is not None


def test_the_header_names_gpu_driver_clocks_and_rates() -> None:
    found = {
        "device": "cuda",
        "name": "A GPU",
        "capability": "sm_90",
        "multiprocessors": 132,
        "l2_bytes": 60_000_000,
        "memory_bytes": 141_000_000_000,
        "cuda": "13.0",
        "clocks_at_start": {
            "driver": "580.1",
            "sm_clock_mhz": "345",
            "max_sm_clock_mhz": "1980",
            "memory_clock_mhz": "3201",
            "power_limit_w": "700.00",
            "temperature_c": "30",
            "utilisation_percent": "0",
        },
        "clocks_after_the_roofline": {},
        "versions": {"torch": "2.11", "triton": "3.6"},
    }
    roofline = {"copy_bytes_per_s": 4e12, "copied_bytes": 2e9, "product_dtype": "bfloat16", "product_size": 8192}
    result = {"environment": found, "roofline": {**roofline, "product_flops_per_s": 7e14}, "notes": ["mind"]}
    text = "\n".join(header(result))
    for word in ("A GPU", "sm_90", "driver 580.1", "torch 2.11", "triton 3.6", "345 MHz", "4,000 GB/s", "700 TFLOP/s"):
        assert word in text
    found["clocks_at_start"] = {}
    assert "driver unknown" in "\n".join(header(result))
