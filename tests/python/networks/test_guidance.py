from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddx.methods.lcm import LCMConfig
from ddx.networks.guidance import add_guidance_embedder, fold_guidance, guidance_input
from ddx.teachers.base import Teacher
from distilling import make_batch, make_teacher, make_trainer

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["flow", "eps"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(request.param, tmp_path_factory.mktemp(request.param) / "pipeline")


def predict(teacher: Teacher, network: nn.Module, guidance: float | None) -> Tensor:
    batch = make_batch(teacher)
    t = torch.full((4,), 0.7 * teacher.process.t_max).double().floor() if teacher.process.t_max > 1 else None
    t = torch.full((4,), 0.7).double() if t is None else t
    with torch.no_grad():
        if guidance is None:
            return teacher.predict(network, batch.x0, t, batch.condition)
        with guidance_input(network, guidance):
            return teacher.predict(network, batch.x0, t, batch.condition)


def test_a_new_student_is_the_teacher_at_every_guidance(teacher: Teacher) -> None:
    student = add_guidance_embedder(teacher, teacher.new_student_network()).eval()
    expected = predict(teacher, teacher.network(), None)
    assert all(torch.equal(predict(teacher, student, s), expected) for s in (1.0, 4.5, 12.0))


def test_training_makes_the_output_depend_on_guidance_and_folding_keeps_it(teacher: Teacher) -> None:
    trainer = make_trainer(teacher, LCMConfig(guidance_min=2.0, guidance_max=8.0), learning_rate=1e-2)
    for step in range(3):
        trainer.step(step, [make_batch(teacher, step)])
    student = trainer.student.eval()
    low, high = predict(teacher, student, 2.0), predict(teacher, student, 8.0)
    assert (low - high).abs().max() > 1e-3
    for guidance, expected in ((2.0, low), (8.0, high)):
        plain = fold_guidance(teacher, student, guidance).eval()
        assert type(plain) is type(teacher.network())
        assert set(plain.state_dict()) == set(teacher.network().state_dict())
        found = predict(teacher, plain, None)
        assert float((found - expected).norm() / expected.norm()) <= 5e-7


def test_a_student_that_takes_guidance_refuses_to_run_without(teacher: Teacher) -> None:
    student = add_guidance_embedder(teacher, teacher.new_student_network())
    with pytest.raises(RuntimeError, match="one more number"):
        predict(teacher, student, None)


def test_a_plain_network_ignores_guidance(teacher: Teacher) -> None:
    network = teacher.network()
    assert torch.equal(predict(teacher, network, 7.0), predict(teacher, network, None))
    assert fold_guidance(teacher, network, 7.0) is network
