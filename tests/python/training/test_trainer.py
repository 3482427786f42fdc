from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from ddx.methods.base import STUDENT
from ddx.methods.lcm import LCMConfig
from ddx.teachers.base import Teacher
from ddx.teachers.families.sana_fused import is_fused, unfuse
from ddx.teachers.registry import load_teacher
from ddx.training.distributed import Ranks
from ddx.training.trainer import FIRST_LOSS_SCALE, Trainer
from distilling import make_batch, make_teacher, make_trainer, read_meter
from pipelines import make_sana


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(teacher_folder)


def test_a_step_that_is_not_finite_is_skipped_and_counted(teacher: Teacher) -> None:
    trainer = make_trainer(teacher)
    trainer.step(0, [make_batch(teacher, 0)])
    held = {name: value.clone() for name, value in trainer.snapshot().tensors[STUDENT].items()}
    moments = {n: v.clone() for n, v in trainer.snapshot().tensors[f"{STUDENT}.optimizer"].items()}
    good = make_batch(teacher, 1)
    broken = dataclasses.replace(good, x0=good.x0.clone())
    broken.x0[2] = float("nan")
    read_meter(trainer)
    trainer.step(1, [broken])
    snapshot = trainer.snapshot()
    assert snapshot.state["skipped"] == 1
    assert all(torch.equal(value, held[name]) for name, value in snapshot.tensors[STUDENT].items())
    assert all(torch.equal(v, moments[n]) for n, v in snapshot.tensors[f"{STUDENT}.optimizer"].items())
    loss = read_meter(trainer)["loss"]
    assert loss is not None and loss > 0  # the mean of the finite rows
    trainer.step(2, [make_batch(teacher, 2)])
    assert trainer.snapshot().state["skipped"] == 1
    assert any(not torch.equal(value, held[name]) for name, value in trainer.snapshot().tensors[STUDENT].items())


def test_bf16_computes_in_bf16_and_keeps_weights_and_state_in_float32(teacher: Teacher) -> None:
    exact = make_trainer(teacher)
    rounded = Trainer(exact.method, exact.config, Ranks(), torch.bfloat16)
    seen = []
    layer = rounded.student.get_submodule("transformer_blocks.0.attn1.to_q")
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    losses = []
    for trainer in (exact, rounded):
        trainer.step(0, [make_batch(teacher)])
        losses.append(read_meter(trainer)["loss"])
    assert seen and set(seen) == {torch.bfloat16}
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]
    floating = [v for group in rounded.snapshot().tensors.values() for v in group.values() if v.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.float32}


def test_fp16_scales_its_losses_and_halves_the_scale_after_a_step_that_is_not_finite(tmp_path: Path) -> None:
    teacher = make_teacher("eps", tmp_path / "pipeline")  # SANA's linear attention at random weights overflows
    exact = make_trainer(teacher)
    half = Trainer(exact.method, exact.config, Ranks(), torch.float16)
    turn = exact.method.turns(0)[0]
    gradients, norms = [], []
    for trainer in (exact, half):
        trainer._accumulate(turn, [make_batch(teacher)])
        trained = trainer.trained[STUDENT]
        gradients.append(torch.cat([p.grad.flatten() for p in trained.parameters if p.grad is not None]))
        trainer._update(trained, 1.0)
        norms.append(read_meter(trainer)["grad_norm"])
    half.scaler.update()
    assert float(gradients[1].norm()) / FIRST_LOSS_SCALE == pytest.approx(float(gradients[0].norm()), rel=0.02)
    assert norms[1] == pytest.approx(norms[0], rel=0.02)  # what is clipped and shown is not scaled
    assert norms[1] != norms[0]

    scale = half.scaler.state_dict()
    half.scaler.load_state_dict({**scale, "scale": 1e30})
    held = {name: value.clone() for name, value in half.snapshot().tensors[STUDENT].items()}
    half.step(1, [make_batch(teacher, 1)])
    snapshot = half.snapshot()
    assert snapshot.state["skipped"] == 1 and snapshot.state["loss_scale"]["scale"] == pytest.approx(5e29)
    assert all(torch.equal(value, held[name]) for name, value in snapshot.tensors[STUDENT].items())
    again = Trainer(exact.method, exact.config, Ranks(), torch.float16)
    again.restore(snapshot)
    assert again.scaler.get_scale() == pytest.approx(5e29)
    del snapshot.state["loss_scale"]  # of a version that had none
    again.restore(snapshot)


@pytest.mark.parametrize("method", ["sid", "sida", "ladd", "sana-sprint"])
def test_frozen_networks_in_the_gradient_s_way_are_checkpointed_too(
    teacher: Teacher, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        """The student's gradient, and the bytes that its graph holds outside of what is recomputed."""
        trainer, held = make_trainer(teacher, method=method, gradient_checkpointing=checkpointing), {}

        def keep(value: torch.Tensor) -> torch.Tensor:
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        turn = next(turn for turn in trainer.method.turns(99) if STUDENT in turn.trains)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            trainer._accumulate(turn, [make_batch(teacher)])
        assert not getattr(teacher.network(), "gradient_checkpointing", False)  # as it was
        return [p.grad for p in trainer.trained[STUDENT].parameters if p.grad is not None], sum(held.values())

    (plain, most), (both, least) = (measured(checkpointing) for checkpointing in (False, True))
    monkeypatch.setattr(Trainer, "_teacher_checkpointing", lambda trainer, turn: contextlib.nullcontext())
    student_only, more = measured(True)
    assert least < more < most
    for ours in (both, student_only):
        assert len(ours) == len(plain) and all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_gradient_checkpointing_changes_nothing(teacher: Teacher) -> None:
    states = []
    for checkpointing in (False, True):
        trainer = make_trainer(teacher, gradient_checkpointing=checkpointing)
        assert getattr(trainer.student, "gradient_checkpointing", False) == checkpointing
        trainer.step(0, [make_batch(teacher)])
        states.append(trainer.snapshot().tensors[STUDENT])
    assert all(torch.allclose(value, states[1][name], atol=1e-6) for name, value in states[0].items())


def test_clipping_limits_the_step_of_a_plain_gradient(teacher: Teacher) -> None:
    trainer = make_trainer(teacher, clip_norm=1e-3)
    seen = []
    trainer.trained[STUDENT].optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(
            torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]]).norm()
            / optimizer.grad_scale  # which the optimiser divides by as it reads
        )
    )
    trainer.step(0, [make_batch(teacher)])
    assert float(seen[0]) == pytest.approx(1e-3, rel=1e-3)
    norm = read_meter(trainer)["grad_norm"]
    assert norm is not None and norm > 1e-2  # reported before clipping


def test_a_restored_trainer_goes_on_exactly(teacher: Teacher) -> None:
    first = make_trainer(teacher, LCMConfig(target_decay=0.9))
    first.step(0, [make_batch(teacher, 0)])
    second = make_trainer(teacher, LCMConfig(target_decay=0.9))
    snapshot = first.snapshot()
    tensors = {group: {n: v.clone() for n, v in named.items()} for group, named in snapshot.tensors.items()}
    second.restore(dataclasses.replace(snapshot, tensors=tensors))
    for trainer in (first, second):
        trainer.step(1, [make_batch(teacher, 1)])
    ours, theirs = first.snapshot().tensors, second.snapshot().tensors
    assert all(torch.equal(ours[group][name], theirs[group][name]) for group in ours for name in ours[group])


def test_what_drops_out_is_the_same_after_a_restore(tmp_path: Path) -> None:
    teacher = make_teacher("v", tmp_path / "pipeline")
    trainers = [make_trainer(teacher, method="ect") for _ in range(2)]
    for trainer in trainers:
        for module in trainer.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        trainer.step(0, [make_batch(teacher)])
        torch.rand(7)  # anyone else who draws
    ours, theirs = (trainer.snapshot().tensors[STUDENT] for trainer in trainers)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_exported_weights_are_lent_and_given_back(teacher: Teacher) -> None:
    trainer = make_trainer(teacher, ema_half_life=100.0)
    for step in range(2):
        trainer.step(step, [make_batch(teacher, step)])
    before = {name: value.clone() for name, value in trainer.student.named_parameters()}
    assert trainer.exported is not None
    average = trainer.exported.parameters()
    with trainer.exported_student() as student:
        assert all(torch.equal(value, average[name]) for name, value in student.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in trainer.student.named_parameters())
    assert trainer.student.training


@pytest.mark.slow  # the interpreter walks through every program of a training step
def test_the_kernels_train_as_stock_does(triton_path: None, tmp_path: Path) -> None:
    folder, values = make_sana(tmp_path / "teacher", layers=1), []
    for fused in (True, False):
        trainer = make_trainer(fresh := load_teacher(folder), clip_norm=1e9)
        for network in (fresh.network(), trainer.student):
            assert is_fused(network)
            if not fused:
                unfuse(network)
        trainer.step(0, [make_batch(fresh, rows=slice(0, 2))])
        values.append(read_meter(trainer))
    assert values[0]["loss"] == pytest.approx(values[1]["loss"], rel=1e-4)
    assert values[0]["grad_norm"] == pytest.approx(values[1]["grad_norm"], rel=1e-3)
