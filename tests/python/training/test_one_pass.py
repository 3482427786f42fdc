"""The optimiser that is one pass on a GPU, in Triton's interpreter, in place of torch's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ddx.checkpoints.folder import load_checkpoint, save_checkpoint
from ddx.methods.base import STUDENT
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training import optimizer as optimizers
from ddx.training.one_pass import OnePass
from ddx.training.optimizer import make_optimizer
from distilling import make_batch, make_trainer


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(teacher_folder)


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that are made from here on have it."""
    monkeypatch.setattr(optimizers, "_runs_kernels", OnePass.takes)


@pytest.mark.parametrize("kind", ["adamw", "radam"])
def test_a_run_of_torchs_optimiser_goes_on_in_one_pass(
    teacher: Teacher, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    settings = {"optimizer": kind, "ema_more": ("decay:0.9",), "weight_decay": 0.1, "adam_epsilon": 1e-4}
    plain = make_trainer(teacher, **settings)
    for step in range(2):
        plain.step(step, [make_batch(teacher, step)])
    saved = save_checkpoint(tmp_path, 2, plain.snapshot(), keep=1)
    request.getfixturevalue("one_pass")
    ours = make_trainer(teacher, **settings)
    assert isinstance(ours.trained[STUDENT].optimizer, OnePass)
    assert not isinstance(plain.trained[STUDENT].optimizer, OnePass)
    ours.restore(load_checkpoint(saved))
    for trainer in (plain, ours):
        good = make_batch(teacher, 2)
        bad = dataclasses.replace(good, x0=torch.full_like(good.x0, float("nan")))  # a step that neither takes
        for step, batch in enumerate((bad, make_batch(teacher, 3), make_batch(teacher, 4)), start=2):
            trainer.step(step, [batch])
    theirs, found = plain.snapshot(), ours.snapshot()
    assert found.state == theirs.state
    assert found.tensors.keys() == theirs.tensors.keys()
    for group, tensors in theirs.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, value in tensors.items():
            torch.testing.assert_close(
                found.tensors[group][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=f"{group}/{name}": f"{n}: {m}"
            )
    back = make_trainer(teacher, **settings)
    back.restore(found)
    assert all(torch.equal(v, found.tensors[STUDENT][n]) for n, v in back.snapshot().tensors[STUDENT].items())


def test_only_whole_float32_weights_are_taken(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers.dispatch, "backend", lambda device: "triton")
    config = make_trainer(teacher).config
    whole = torch.nn.Parameter(torch.zeros(4, 3))
    for odd in (torch.zeros(4, 3).T, torch.zeros(3, dtype=torch.float64)):
        assert isinstance(make_optimizer([whole, torch.nn.Parameter(odd)], 1e-3, config), torch.optim.AdamW)
    assert isinstance(make_optimizer([whole], 1e-3, config), OnePass)
