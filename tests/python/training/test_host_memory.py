"""What lives in the host's memory takes part in a step with the same results, and goes on from a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from ddx.errors import UsageError
from ddx.methods.registry import method_spec
from ddx.teachers.blocks import blocks_of
from ddx.teachers.registry import load_teacher
from ddx.training import host_memory
from ddx.training.config import OFFLOADS, DistillConfig
from ddx.training.streamed import cannot_stream
from ddx.training.trainer import Trainer
from distilling import make_batch, make_trainer

SETTINGS: dict[str, Any] = {
    "gradient_checkpointing": True,
    "weight_decay": 0.1,
    "ema_half_life": 8.0,
    "ema_more": ("decay:0.9",),
}


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {f"{group}/{n}": v.clone() for group, named in trainer.snapshot().tensors.items() for n, v in named.items()}


def trainer_of(folder: Path, **settings: Any) -> Trainer:
    teacher = load_teacher(folder)
    teacher.network()  # loading draws random numbers, and low-rank matrices begin at random
    return make_trainer(teacher, method="sid", **{**SETTINGS, **settings})


BASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "low rank": {"lora_rank": 4},
    "low rank, 8 bits": {"lora_rank": 4, "base_bits": 8},
    "low rank, 4 bits": {"lora_rank": 4, "base_bits": 4},
}


@pytest.mark.parametrize("more", BASES.values(), ids=BASES)
def test_it_changes_no_bit(teacher_folder: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if more.get("base_bits") == 4:
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(host_memory, "PART", 500)  # of some thousand weights
    plain = trainer_of(teacher_folder, **more)
    offloaded = trainer_of(teacher_folder, offload=OFFLOADS, checkpointed_share=0.5, **more)
    host = plain.method.teacher
    for trainer in (plain, offloaded):
        for step in range(2):
            trainer.step(step, [make_batch(host, step)])
    again = trainer_of(teacher_folder, offload=OFFLOADS, **more)
    snapshot = offloaded.snapshot()
    kept = {group: {n: v.clone() for n, v in named.items()} for group, named in snapshot.tensors.items()}
    again.restore(dataclasses.replace(snapshot, tensors=kept))
    for trainer in (plain, offloaded, again):
        trainer.step(2, [make_batch(host, 2)])
    expected = tensors(plain)
    for trainer in (offloaded, again):
        found = tensors(trainer)
        assert found.keys() == expected.keys()
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_what_is_named_lives_on_the_host_and_nothing_else(
    teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = host_memory.allocate

    def allocate(shape: torch.Size, dtype: torch.dtype, pinned: bool) -> Tensor:
        sizes.append(shape.numel())
        return plain(shape, dtype, pinned)

    monkeypatch.setattr(host_memory, "allocate", allocate)
    found = {}
    for name in (None, *OFFLOADS):
        sizes.clear()
        trainer = trainer_of(teacher_folder, offload=() if name is None else (name,))
        trainer.step(0, [make_batch(trainer.method.teacher)])
        found[name] = sum(sizes)
    trained = [parameter for trained in trainer.trained.values() for parameter in trained.parameters]
    blocks = blocks_of(trainer.method.teacher.network())
    assert found[None] == 0 and found["activations"] > 0
    assert found["moments"] == 2 * sum(parameter.numel() for parameter in trained)
    assert found["averages"] == 2 * sum(parameter.numel() for parameter in trainer.student.parameters())
    assert found["frozen"] == sum(parameter.numel() for block in blocks for parameter in block.parameters())


def test_a_share_of_the_blocks_is_computed_again(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plain = torch.utils.checkpoint.checkpoint

    def checkpoint(function: Any, *inputs: Any, **settings: Any) -> Any:
        seen.append(function.__self__)
        return plain(function, *inputs, **settings)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", checkpoint)
    for share, expected in ((1.0, [0, 1]), (0.5, [1])):
        seen.clear()
        trainer = make_trainer(load_teacher(teacher_folder), gradient_checkpointing=True, checkpointed_share=share)
        trainer.step(0, [make_batch(trainer.method.teacher)])
        blocks = list(trainer.student.get_submodule("transformer_blocks").children())
        assert [blocks.index(block) for block in seen] == expected


def test_the_moments_of_another_optimiser_are_refused() -> None:
    with pytest.raises(UsageError, match="offload = moments is for adamw, and optimizer = came"):
        DistillConfig(offload=("moments",), optimizer="came")


@pytest.mark.parametrize("name", ["scm", "ect"])
def test_only_a_dual_forward_keeps_low_rank_bases_on_the_device(name: str) -> None:
    config = method_spec(name).config()
    assert (cannot_stream(4, config, 1) is not None) == (getattr(config, "jvp", None) == "dual") == (name == "scm")
    assert cannot_stream(0, config, 1) is None
    assert "data parallelism" in str(cannot_stream(4, method_spec("ect").config(), 2))


def test_free_memory_is_the_machine_s_or_what_its_container_may_still_take(tmp_path: Path) -> None:
    assert host_memory.free_memory(tmp_path) == 2**63  # nothing says how much
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:   9999 kB\nMemAvailable:   2048 kB\nHugePages_Total:   0\n")
    assert host_memory.free_memory(tmp_path) == 2**21
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 700000\ninactive_file 100000\n")
    for limit, free in (("max", 2**21), ("1000000", 200_000), ("800000", 0)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert host_memory.free_memory(tmp_path) == free
