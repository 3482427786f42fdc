"""Tuning: the table keeps what it is not told to change, and only what is faster, and right, is chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench_cases import stock, tanh_case
from ddx.bench import tuning
from ddx.bench.case import Case
from ddx.bench.timing import Measured
from ddx.bench.tuning import launched_by, tune, write_table
from ddx.errors import DdxError
from ddx.kernels.launch import LAUNCHES, TABLE, Launch

CPU = torch.device("cpu")
OPTIONS = ({"ROWS": 1}, {"ROWS": 2}, {"ROWS": 4}, {"ROWS": 8})


@pytest.fixture
def kernel() -> Iterator[Launch]:
    yield Launch("tanh", default=OPTIONS[0], candidates=OPTIONS)
    del LAUNCHES["tanh"]


def case_of(kernel: Launch, wrong_with: int | None = None) -> Case:
    def ours(x: Tensor, w: Tensor) -> Tensor:
        rows = kernel.options(x.device)["ROWS"]
        return stock(x, w) + (1.0 if rows == wrong_with and x.dtype != torch.float64 else 0.0)

    return tanh_case("forward", ours)


def pretend(monkeypatch: pytest.MonkeyPatch, kernel: Launch, times: list[dict[int, float | None]]) -> None:
    """Times by ROWS, a dict a case, in place of measurements."""
    turn = {"call": 0}

    def gpu_time(case: Case, sets: Any, device: torch.device) -> Measured:
        told = times[turn["call"] % len(times)][kernel.options(device)["ROWS"]]
        turn["call"] += 1 if told is not None else len(times) - turn["call"] % len(times)
        return Measured(us=told) if told is not None else Measured(failure="OutOfResources: shared memory")

    monkeypatch.setattr(tuning, "gpu_time", gpu_time)


def chosen(cases: list[Case]) -> dict[str, Any] | None:
    found = [trial.options for trial in tune(cases, CPU, torch.float32) if trial.chosen]
    return dict(found[0]) if found else None


def test_the_sum_over_cases_decides(monkeypatch: pytest.MonkeyPatch, kernel: Launch) -> None:
    cases = [case_of(kernel), case_of(kernel)]
    small: dict[int, float | None] = {1: 10.0, 2: 8.0, 4: 5.0, 8: 20.0}
    large: dict[int, float | None] = {1: 100.0, 2: 80.0, 4: 95.0, 8: 70.0}
    pretend(monkeypatch, kernel, [small, large])
    assert chosen(cases) == {"ROWS": 2}
    assert kernel.forced is None


def test_the_default_stays_within_the_noise(monkeypatch: pytest.MonkeyPatch, kernel: Launch) -> None:
    pretend(monkeypatch, kernel, [{1: 100.0, 2: 99.0, 4: 120.0, 8: 130.0}])
    assert chosen([case_of(kernel)]) == {"ROWS": 1}


def test_what_does_not_run_or_is_wrong_is_passed_over(monkeypatch: pytest.MonkeyPatch, kernel: Launch) -> None:
    pretend(monkeypatch, kernel, [{1: 100.0, 2: 50.0, 4: 60.0, 8: None}])
    assert chosen([case_of(kernel, wrong_with=2)]) == {"ROWS": 4}
    trials = tune([case_of(kernel)], CPU, torch.float32)
    assert [trial.failure for trial in trials] == ["", "", "", "OutOfResources: shared memory"]


def test_only_the_kernels_that_a_case_launches_are_tried(kernel: Launch) -> None:
    assert launched_by(case_of(kernel), CPU, torch.float32) == ["tanh"]
    assert launched_by(tanh_case(), CPU, torch.float32) == []


def test_other_gpus_and_other_kernels_are_kept(tmp_path: Path) -> None:
    table = tmp_path / "tuned.json"
    table.write_text("{}")
    write_table(table, "NVIDIA H200", {"rms_norm": {"ROWS": 2}, "rms_norm_dual": {"ROWS": 1}})
    write_table(table, "NVIDIA A100", {"rms_norm": {"ROWS": 4}})
    write_table(table, "NVIDIA H200", {"rms_norm": {"ROWS": 8, "num_warps": 4}})
    assert json.loads(table.read_text()) == {
        "NVIDIA A100": {"rms_norm": {"ROWS": 4}},
        "NVIDIA H200": {"rms_norm": {"ROWS": 8, "num_warps": 4}, "rms_norm_dual": {"ROWS": 1}},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.json"]


def test_a_launch_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Launch) -> None:
    table = tmp_path / "tuned.json"
    monkeypatch.setattr("ddx.kernels.launch.TABLE", table)
    write_table(table, "cpu", {"tanh": {"ROWS": 4}})
    assert kernel.options(CPU)["ROWS"] == 4
    write_table(table, "cpu", {"tanh": {"ROWS": 8}})
    assert kernel.options(CPU)["ROWS"] == 8
    monkeypatch.undo()
    write_table(tmp_path / "other.json", "cpu", {})  # forgets what was read
    assert kernel.options(CPU)["ROWS"] == 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a chmod would not stop root
    with pytest.raises(DdxError, match="not writable") as error:
        write_table(tmp_path / "tuned.json", "cpu", {})
    assert error.value.hint is not None and "--out FILE" in error.value.hint


def test_a_new_file_begins_as_the_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tuned.json"
    write_table(package, "NVIDIA A100", {"rms_norm": {"ROWS": 4}})
    monkeypatch.setattr("ddx.kernels.launch.TABLE", package)
    elsewhere = tmp_path / "new" / "mine.json"
    write_table(elsewhere, "NVIDIA H200", {"rms_norm": {"ROWS": 2}})
    assert list(json.loads(elsewhere.read_text())) == ["NVIDIA A100", "NVIDIA H200"]
    assert list(json.loads(package.read_text())) == ["NVIDIA A100"]


@pytest.mark.parametrize("content", ["{", "[]", '{"cpu": 3}'])
def test_a_table_that_is_none_is_left_alone(content: str, tmp_path: Path) -> None:
    table = tmp_path / "tuned.json"
    table.write_text(content)
    with pytest.raises(DdxError, match=r"tuned\.json"):
        write_table(table, "cpu", {"rms_norm": {"ROWS": 2}})
    assert table.read_text() == content


def test_the_committed_table_is_one() -> None:
    for kernels in tuning.read_table(TABLE).values():
        assert all(isinstance(value, int) for options in kernels.values() for value in options.values())
