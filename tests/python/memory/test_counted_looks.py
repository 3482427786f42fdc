"""Looks and grids are counted beside a step, as torch's allocator counts them, and are fitted to a device with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allocator import measured_peaks
from ddx.errors import UsageError
from ddx.memory import plan
from ddx.memory.fake_run import footprint
from ddx.memory.plan import ALLOWANCE, Device, Planner
from ddx.memory.repeats import Repeats
from ddx.memory.table import looks_line
from ddx.methods.registry import load_method, method_spec
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.trainer import Trainer
from ddx.watch.validation import IN_PARTS, ROWS, Validation, rows_at_once
from ddx.watch.vector import measures_of
from distilling import make_batch
from pipelines import make_sana

MICRO = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("pipelines") / "sana", layers=2, width=160)


def config_of(**settings: Any) -> DistillConfig:
    values = {"batch_size": MICRO, "micro_batch_size": MICRO, "train_steps": 100, "optimizer": "adamw"}
    return DistillConfig(**{**method_spec("lcm").method.defaults, **values, **settings})


@pytest.mark.parametrize("rank", [0, 4], ids=["whole", "low rank"])
def test_a_look_takes_what_torchs_allocator_hands_out(folder: Path, rank: int) -> None:
    config, method_config = config_of(lora_rank=rank), method_spec("lcm").config()
    batch = dataclasses.replace(make_batch(load_teacher(folder), rows=slice(0, MICRO)), step=config.train_steps - 1)
    made: list[Trainer] = []

    def steps() -> None:
        made.append(Trainer(load_method("lcm", method_config, load_teacher(folder)), config, Ranks(), torch.float32))
        for _ in range(2):
            made[0].step(config.train_steps - 1, [batch])

    def look() -> None:
        trainer = made[0]
        teacher, rows = trainer.method.teacher, [batch.condition.index(slice(k, k + 1)) for k in range(MICRO)]
        shape, settings = teacher.latent_shape(), {"most_steps": 2, "seed": 0, "stream": -2, "rows": MICRO}
        drawn = Validation(trainer.method, rows, teacher.null_condition(), shape, **settings)
        drawn.teacher_draws(2)
        with trainer.exported_student() as student, trainer.autocast():
            latents = drawn.student_draws(student, 2)
        measures_of(drawn.decode(latents[:1]))

    _, real = measured_peaks(steps, look)
    sizes = {"rows": MICRO, "tokens": batch.condition.tokens.shape[1], "fused": False, "block": 64}
    teacher = load_teacher(folder)
    found = footprint(config, method_config, None, teacher, dtype=torch.float32, repeats=Repeats(), **sizes)
    assert found.looks is not None and found.looks.num_bytes == pytest.approx(real, rel=0.05)
    assert str(looks_line(found)).startswith("looks")
    quiet = dataclasses.replace(config, watch=False, sample_every=0)
    again = footprint(quiet, method_config, None, load_teacher(folder), dtype=torch.float32, **sizes)
    assert again.looks is None and again.num_bytes == again.peak.num_bytes


def test_looks_that_would_take_more_than_the_device_has_decode_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "IN_PARTS", dataclasses.replace(IN_PARTS, maps=2**21))  # of maps that are small here
    folder = make_sana(tmp_path / "sana", layers=1, width=16)
    config = config_of(teacher=str(folder), resolution=512, lora_rank=4, batch_size=1, micro_batch_size=1)
    run = Planner(config, method_spec("lcm").config(), None, device=Device(True, torch.bfloat16), tokens=20)
    found = run.footprint()
    assert found.looks is not None and found.looks.num_bytes > 1.5 * found.peak.num_bytes
    assert found.looks.during[0] == "autoencoder" and "more than a step" in str(looks_line(found))
    kept = ("gradient_checkpointing", "average_dtype", "optimizer", "offload", "base_bits", "micro_batch_size")
    least = found.peak.num_bytes + 2**16
    fit = run.fit(least + ALLOWANCE, kept, lambda _: None)
    assert fit.config.look_decoder == "parts" and fit.reasons["look_decoder"]
    assert fit.footprint.num_bytes <= least
    assert run.fit(found.looks.num_bytes + ALLOWANCE, kept, lambda _: None).config.look_decoder == "whole"
    with pytest.raises(UsageError, match="the least is about"):
        run.fit(least + ALLOWANCE, (*kept, "look_decoder"), lambda _: None)


def test_a_decoder_in_parts_draws_the_same_pictures_and_goes_when_it_is_unloaded(folder: Path) -> None:
    def pictures(**more: Any) -> Tensor:
        teacher = load_teacher(folder)
        method = load_method("lcm", method_spec("lcm").config(), teacher)
        rows = [make_batch(teacher).condition.index(slice(0, 1))]
        drawn = Validation(method, rows, teacher.null_condition(), (8, 64, 64), most_steps=1, seed=0, stream=-2, **more)
        found = drawn.decode(drawn.noises[0])
        assert teacher.is_loaded("vae")
        teacher.unload("vae")
        assert not teacher.is_loaded("vae")
        return found.short()

    assert (pictures() - pictures(in_parts=True)).abs().max() <= 1


def test_a_look_draws_no_more_rows_at_a_time_than_a_step() -> None:
    assert [rows_at_once(size) for size in (1, 4, 64, None)] == [1, 4, ROWS, ROWS]
