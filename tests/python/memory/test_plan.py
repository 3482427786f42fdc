"""A run is fitted to a device's memory by the cheapest settings that do it, and refused with the least that would."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddx.cli import main
from ddx.errors import UsageError
from ddx.memory.amount import in_gib, parse_amount
from ddx.memory.fake_run import WEIGHTS
from ddx.memory.plan import ALLOWANCE, RANK, Device, Planner
from ddx.methods.registry import method_spec
from ddx.teachers.blocks import blocks_of
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from pipelines import make_sana


def planner(folder: Path, name: str = "lcm", **settings: Any) -> Planner:
    values = {"teacher": str(folder), "batch_size": 16, "micro_batch_size": 8, "gradient_checkpointing": False}
    config = DistillConfig(method=name, **{**method_spec(name).method.defaults, **values, **settings})
    return Planner(config, method_spec(name).config(), None, device=Device(True, torch.bfloat16), tokens=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("pipeline") / "sana", layers=1, width=256)


def test_settings_are_chosen_from_cheap_to_dear(folder: Path) -> None:
    run = planner(folder)
    as_asked = run.footprint().peak.num_bytes
    seen: list[str] = []
    for least_rows, settings, share in (
        (8, set(), 1.0),
        (1, set(), 0.97),
        (1, {"gradient_checkpointing", "checkpointed_share", "average_dtype", "optimizer", "offload"}, 0.8),
    ):
        fit = run.fit(int(share * as_asked) + ALLOWANCE, (), seen.append)
        assert fit.footprint.peak.num_bytes <= share * as_asked
        assert fit.reasons.keys() - {"micro_batch_size"} <= settings and fit.config.batch_size == 16
        assert fit.config.micro_batch_size is not None and fit.config.micro_batch_size >= least_rows
        assert fit.footprint.peak.num_bytes == pytest.approx(run.footprint(fit.config).peak.num_bytes, rel=0.01)
    low = run.fit(int(0.3 * as_asked) + ALLOWANCE, (), seen.append)
    assert low.config.lora_rank and low.reasons["lora_rank"]
    assert seen[0] == "counting a step with the recipe as it is …"


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_fewer_bits_takes_fewer_bytes(folder: Path, bits: int) -> None:
    """Counted on tensors without data, by the bytes of what is stored; 4 bits without the package that makes them."""
    run = planner(folder, lora_rank=RANK)
    plain = run.footprint()
    packed = run.footprint(dataclasses.replace(run.config, base_bits=bits))
    network = load_teacher(folder).network()
    layers = [m for block in blocks_of(network) for m in block.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    values = [m.weight for m in layers if m.weight.numel() >= 4096 and getattr(m, "groups", 1) == 1]
    after = sum(v.numel() + 4 * len(v) if bits == 8 else v.numel() // 2 + v.numel() // 16 for v in values)
    saved = sum(2 * v.numel() for v in values) - after  # of bfloat16
    weights = [sum(by for use, by in found.peak.by_use.items() if use.kind == WEIGHTS) for found in (plain, packed)]
    assert weights[0] - weights[1] == pytest.approx(saved, rel=0.02)
    assert packed.peak.num_bytes < plain.peak.num_bytes and packed.num_parameters == plain.num_parameters


def test_a_base_in_fewer_bits_is_chosen_behind_low_rank(folder: Path) -> None:
    run = planner(folder, gradient_checkpointing=True, lora_rank=RANK, offload=("moments",), micro_batch_size=1)
    packed = run.footprint(dataclasses.replace(run.config, base_bits=8)).peak.num_bytes
    said = ("micro_batch_size", "lora_rank", "offload", "average_dtype", "checkpointed_share", "gradient_checkpointing")
    fit = run.fit(packed + ALLOWANCE, said, lambda _: None)
    assert fit.config.base_bits == 8 and "8 bits" in fit.reasons["base_bits"]
    with pytest.raises(UsageError, match="the least is about"):
        run.fit(packed + ALLOWANCE, (*said, "base_bits"), lambda _: None)


def test_what_the_user_decided_stays(folder: Path) -> None:
    run = planner(folder)
    peak = run.footprint().peak.num_bytes
    enough = int(1.01 * run.footprint(dataclasses.replace(run.config, lora_rank=RANK)).peak.num_bytes) + ALLOWANCE
    said = ("micro_batch_size", "gradient_checkpointing", "optimizer")
    fit = run.fit(enough, said, lambda _: None)
    assert (fit.config.micro_batch_size, fit.config.gradient_checkpointing, fit.config.optimizer) == (8, False, "adamw")
    assert set(fit.reasons) == {"lora_rank"}
    with pytest.raises(UsageError, match="does not fit") as error:
        run.fit(enough, (*said, "lora_rank", "offload", "average_dtype"), lambda _: None)
    least = re.search(r"the least is about ([\d.]+ GiB)", str(error.value))
    assert least is not None and least[1] == in_gib(peak + ALLOWANCE)
    assert error.value.hint is not None and "--memory 2GiB" in error.value.hint


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("24g", 24e9), ("22.5 GiB", 22.5 * 2**30), ("400MB", 4e8)])
def test_amounts(text: str, size: float) -> None:
    assert parse_amount(text) == int(size)


@pytest.mark.parametrize("text", ["24", "0GB", "much", "-3GB", "24TB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_amount(text)


@pytest.mark.slow  # a step of a real architecture is counted for half a minute
def test_the_dry_run_of_a_teacher_that_is_not_here_tells_its_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    asked = ["distill", "--teacher", "pixart-sigma-512", "--memory", "12GB", "--dry-run", "--workspace", str(tmp_path)]
    assert main.run([*asked, "--lora-rank", "16", "--micro-batch-size", "1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    memory = plan["memory"]
    assert plan["num_parameters"] == 610_856_096
    assert memory["by"]["teacher"]["weights"] == pytest.approx(2 * plan["num_parameters"], rel=0.01)  # in bfloat16
    assert memory["peak_bytes"] == sum(size for kinds in memory["by"].values() for size in kinds.values())
    assert memory["peak_bytes"] < 11e9
    assert not list(tmp_path.glob("students/*"))
