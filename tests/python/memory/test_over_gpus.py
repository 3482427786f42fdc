"""What a step takes of each of several GPUs follows from that of one: states are shared out, the rest is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddx.memory.over_gpus import OverGpus
from ddx.memory.plan import Device, Planner
from ddx.methods.registry import method_spec
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from pipelines import make_sana

WORLDS = (1, 2, 4, 10**9)
MORE = 0.03  # that a student has embedders of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("pipeline") / "sana", layers=3, width=160)


def planner(folder: Path, name: str, **settings: Any) -> Planner:
    values = {"teacher": str(folder), "batch_size": 1, "micro_batch_size": 1, **settings}
    config = DistillConfig(method=name, **{**method_spec(name).method.defaults, **values})
    return Planner(config, method_spec(name).config(), None, device=Device(True, torch.bfloat16), tokens=20)


@pytest.fixture(scope="module")
def lcm(folder: Path) -> OverGpus:
    return planner(folder, "lcm").over_gpus(WORLDS)


def test_one_gpu_holds_what_a_run_without_shares_does(folder: Path, lcm: OverGpus) -> None:
    assert lcm.peaks[1] == pytest.approx(planner(folder, "lcm").footprint().peak.num_bytes, rel=1e-3)


def test_more_gpus_share_the_states_and_nothing_else(folder: Path, lcm: OverGpus) -> None:
    num = sum(value.numel() for value in load_teacher(folder).network().parameters())
    states = num * (2 + 4 + 4 + 8 + 4 + 4)  # teacher; student, its gradients and moments; target and average
    saved = lcm.peaks[2] - lcm.peaks[4]
    assert states / 4 * 0.8 < saved < states / 4 * 1.02  # not all gradients are there at the peak
    alone = lcm.peaks[10**9]
    assert alone < lcm.peaks[4] - saved * 0.9 and alone > lcm.peaks[1] - 1.1 * states


def test_passes_and_updates_are_those_of_the_method(folder: Path, lcm: OverGpus) -> None:
    assert lcm.passes == {"teacher": 1, "target": 1, "student": 2} and lcm.updates == {"student": 1}
    turns = method_spec("dmd2").config().fake_updates
    dmd2 = planner(folder, "dmd2").over_gpus((1,))
    assert turns > 1 and dmd2.updates == {"fake_score": turns, "discriminator": turns, "student": 1}
    assert dmd2.turns["student"] == dmd2.turns["fake_score"] == turns + 1
    assert dmd2.passes["student"] >= turns + 2  # it draws for each turn, and learns once


def test_what_is_sent_is_weights_a_pass_and_gradients_an_update(folder: Path, lcm: OverGpus) -> None:
    num = sum(value.numel() for value in load_teacher(folder).network().parameters())
    assert lcm.received(1) == lcm.received_whole(1) == 0
    around = lcm.weights["student"].around
    assert 0 < around < num  # of the student, whose blocks go twice
    assert lcm.received(10**9) == pytest.approx(num * (2 + 3 * 4 + 4) - around, rel=MORE)
    assert lcm.received_whole(10**9) == pytest.approx(num * 2 * 4, rel=MORE)
    assert lcm.received_between(8, 10**9) == pytest.approx(num * 2 * 4 / 8, rel=MORE)


def test_checkpointing_sends_no_more(folder: Path, lcm: OverGpus) -> None:
    again = planner(folder, "lcm", gradient_checkpointing=True).over_gpus(WORLDS)
    assert again.passes == lcm.passes and again.peaks[4] <= lcm.peaks[4]
