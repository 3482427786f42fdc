"""What holds for every method with its defaults: it trains, resumes bit for bit, takes low-rank matrices, and leaves a
plain diffusers pipeline that draws what the method says it draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddx.methods.base import STUDENT
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.methods.registry import METHODS, method_spec
from ddx.run_record import write_run
from ddx.sampling.pipeline import StudentPipeline
from ddx.teachers.base import Teacher
from ddx.training.export import export_student
from ddx.training.trainer import Trainer
from distilling import CAPTIONS, make_batch, make_teacher, make_trainer, read_meter

torch.set_num_threads(1)
STEPS = (1, 2, 4)
# those that have no discriminator of their own, and are also run with one beside them
JUDGED = [name for name, spec in METHODS.items() if spec.takes_discriminator]
# every method once with whole weights, and once with low-rank matrices
RUNS = [(name, None, 0) for name in METHODS] + [(name, 0.1 if name in JUDGED else None, 4) for name in METHODS]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher("flow", tmp_path_factory.mktemp("flow") / "pipeline")


@pytest.fixture(scope="module")
def vp_teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher("v", tmp_path_factory.mktemp("v") / "pipeline")


def train(trainer: Trainer, teacher: Teacher, steps: range) -> None:
    for step in steps:
        trainer.step(step, [make_batch(teacher, step, rows=part) for part in (slice(0, 3), slice(3, 4))])


def copied(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    return {group: {n: v.clone() for n, v in named.items()} for group, named in trainer.snapshot().tensors.items()}


@pytest.mark.parametrize(("name", "gan_weight", "lora_rank"), RUNS)
def test_it_moves_the_student_leaves_the_teacher_resumes_exactly_and_draws_what_it_says(
    teacher: Teacher, name: str, gan_weight: float | None, lora_rank: int, tmp_path: Path
) -> None:
    settings = {"method": name, "lora_rank": lora_rank, "learning_rate": 1e-2}
    discriminator = None if gan_weight is None else AddedDiscriminatorConfig(gan_weight=gan_weight)
    before = {key: value.clone() for key, value in teacher.network().state_dict().items()}
    first = make_trainer(teacher, discriminator=discriminator, **settings)
    start, first_heads = copied(first)[STUDENT], copied(first).get(DISCRIMINATOR, {})
    train(first, teacher, range(2))
    snapshot, saved = first.snapshot(), copied(first)
    assert snapshot.state["skipped"] == 0
    assert any(not torch.equal(value, start[key]) for key, value in saved[STUDENT].items())
    assert all(torch.equal(value, before[key]) for key, value in teacher.network().state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.network().parameters())
    values = read_meter(first)
    assert all(values[key] is not None for key in values if key.endswith("loss")), values
    assert gan_weight is None or any(not torch.equal(v, first_heads[k]) for k, v in saved[DISCRIMINATOR].items())

    second = make_trainer(teacher, discriminator=discriminator, **settings)
    second.restore(type(snapshot)(saved, snapshot.state))
    for trainer in (first, second):
        train(trainer, teacher, range(2, 3))
    ours, theirs = copied(first), copied(second)
    assert ours.keys() == theirs.keys()
    assert [f"{g}/{n}" for g in ours for n in ours[g] if not torch.equal(ours[g][n], theirs[g][n])] == []
    if not lora_rank:
        assert_draws_what_it_says(first, exported(first, tmp_path / "student"))


@pytest.mark.parametrize(("name", "kind"), [("lcm", "flow"), ("lcm", "vp"), ("dmd2", "vp")])
def test_a_student_draws_at_the_times_that_it_was_given(
    teacher: Teacher, vp_teacher: Teacher, name: str, kind: str, tmp_path: Path
) -> None:
    teacher, times = teacher if kind == "flow" else vp_teacher, {"student_times": (0.9, 0.783)}
    config = method_spec(name).config(**times, **({"num_steps": 2} if name == "dmd2" else {}))
    trainer = make_trainer(teacher, config, method=name, learning_rate=1e-2)
    train(trainer, teacher, range(2))
    pipeline = exported(trainer, tmp_path / "student")
    if kind == "flow":
        assert pipeline.files.call_arguments(2)["sigmas"] == [0.9, 0.783]
        assert pipeline.files.call_arguments(4)["sigmas"] == pytest.approx([0.9, 0.675, 0.45, 0.225])
    else:
        first, second = pipeline.files.call_arguments(2)["timesteps"]
        assert pipeline.files.call_arguments(4)["timesteps"][0] == first
        process = teacher.process
        found = process.flow_time(torch.tensor([first, second], dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor([0.9, 0.783]).double(), atol=1e-3, rtol=0)
    assert_draws_what_it_says(trainer, pipeline)


@pytest.mark.parametrize("name", METHODS)
def test_its_student_of_a_vp_teacher_draws_what_it_says(vp_teacher: Teacher, name: str, tmp_path: Path) -> None:
    trainer = make_trainer(vp_teacher, method=name, learning_rate=1e-2)
    train(trainer, vp_teacher, range(2))
    assert_draws_what_it_says(trainer, exported(trainer, tmp_path / "student"))


def exported(trainer: Trainer, folder: Path) -> StudentPipeline:
    method = trainer.method
    notes = export_student(method, trainer.final_student(), folder, "float32", torch.float32)
    write_run(folder, {"kind": "student", **method.export_notes(), **notes}, finished=True)
    pipeline = StudentPipeline(folder, device="cpu")
    assert type(pipeline.pipeline).__module__.startswith("diffusers.")
    return pipeline


def assert_draws_what_it_says(trainer: Trainer, pipeline: StudentPipeline) -> None:
    method, teacher, student = trainer.method, trainer.method.teacher, trainer.final_student()
    condition = make_batch(teacher).condition.index(slice(0, 1))
    for steps in STEPS:
        generator = torch.Generator().manual_seed(3)
        noises = [torch.randn(1, *teacher.latent_shape(), generator=generator) for _ in range(steps)]
        expected = method.draw(student, noises, condition)
        arguments = pipeline._arguments(steps, None)
        found = pipeline.pipeline(
            CAPTIONS[0], generator=torch.Generator().manual_seed(3), output_type="latent", **arguments
        ).images
        assert float((found - expected).norm() / expected.norm()) < 2e-3, steps
