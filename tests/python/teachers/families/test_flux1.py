"""FLUX.1 takes the guidance scale itself: in training, in a range of them, and in the student's pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ddx.errors import UsageError
from ddx.methods.lcm import LCMConfig
from ddx.networks.guidance import guidance_input
from ddx.run_record import write_run
from ddx.sampling.card import card_text
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.export import export_student
from distilling import make_batch, make_trainer
from tiny import flux1, open_pipeline

T = torch.full((4,), 0.7, dtype=torch.float64)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    torch.manual_seed(0)
    return load_teacher(flux1.make(tmp_path_factory.mktemp("flux1") / "teacher"), resolution=64)


def predicted(teacher: Teacher, guidance: float | Tensor | None, t: Tensor = T) -> Tensor:
    batch, network = make_batch(teacher), teacher.network()
    with torch.no_grad():
        if guidance is None:
            return teacher.predict(network, batch.x0, t, batch.condition)
        with guidance_input(network, guidance):
            return teacher.predict(network, batch.x0, t, batch.condition)


def test_a_network_is_fed_any_guidance_and_the_teachers_own_by_default(teacher: Teacher) -> None:
    by_row = torch.tensor([1.0, 2.0, 3.5, 7.0], dtype=torch.float64)
    together = predicted(teacher, by_row)
    for row, scale in enumerate(by_row.tolist()):
        torch.testing.assert_close(together[row], predicted(teacher, scale)[row], rtol=0, atol=1e-5)
    assert torch.equal(predicted(teacher, None), predicted(teacher, teacher.default_guidance))
    assert (predicted(teacher, 2.0) - predicted(teacher, 3.5)).abs().max() > 1e-4
    batch = make_batch(teacher)
    with torch.no_grad():
        guided = teacher.guided(teacher.network(), batch.x0, T, batch.condition, batch.null, by_row)
    assert torch.equal(guided, together)
    assert (
        teacher.network().state_dict().keys() == FluxTransformer2DModel(**teacher.denoiser_config).state_dict().keys()
    )


def test_times_and_guidance_are_not_rounded_to_bfloat16(teacher: Teacher) -> None:
    coarse = load_teacher(teacher.folder, dtype="bf16", resolution=64)
    assert not torch.equal(predicted(coarse, 3.5, T + 0.001), predicted(coarse, 3.5))
    assert not torch.equal(predicted(coarse, 3.505), predicted(coarse, 3.5))
    exact = predicted(teacher, 3.5)
    assert float((predicted(coarse, 3.5) - exact).norm() / exact.norm()) < 0.02


def test_a_student_of_a_range_of_guidances(teacher: Teacher, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, LCMConfig(guidance_min=2.0, guidance_max=6.0), learning_rate=1e-2)
    fed: list[Tensor] = []
    embedder = trainer.student.get_submodule("time_text_embed")
    handle = embedder.register_forward_hook(lambda _module, inputs, _output: fed.append(inputs[1]))
    for step in range(2):
        trainer.step(step, [make_batch(teacher, step)])
    handle.remove()
    used = torch.cat(fed) / 1000.0
    assert used.min() >= 2.0 and used.max() <= 6.0 and len(used.unique()) > 4
    trainer.method.export_guidance = 3.0
    folder = tmp_path / "student"
    notes = export_student(trainer.method, trainer.final_student(), folder, "float32", torch.float32)
    record = {"kind": "student", "resolution": 64, **trainer.method.export_notes(), **notes}
    write_run(folder, record, finished=True)
    files = StudentFolder(folder)
    assert files.call_arguments(1)["guidance_scale"] == 3.0
    assert "trained with 2 to 6" in card_text(files)
    student, condition = StudentPipeline(folder, device="cpu"), make_batch(teacher).condition.index(0)
    noise = [teacher.initial_noise([torch.Generator().manual_seed(3)])]
    for scale in (3.0, 5.0):
        student.set_guidance(scale)
        drawn = trainer.method.draw(trainer.student, noise, condition, guidance=scale)
        arguments = {**files.call_arguments(1), "guidance_scale": scale, "output_type": "latent"}
        found = open_pipeline(folder)(
            prompt="a red circle", generator=torch.Generator().manual_seed(3), **arguments
        ).images
        found = flux1.unpacked(found, teacher.latent_shape())
        assert float((found - drawn).norm() / drawn.norm()) < 1e-5
        del arguments["output_type"]
        picture = open_pipeline(folder)("a red circle", generator=torch.Generator().manual_seed(3), **arguments).images
        assert student.draw(["a red circle"], [3], 1)[0].tobytes() == picture[0].tobytes()
    with pytest.raises(UsageError, match="outside 2 to 6"):
        student.set_guidance(7.0)


def test_a_student_of_one_guidance_says_so(teacher: Teacher, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, LCMConfig())
    assert trainer.method.export_notes()["guidance_range"] == [3.5, 3.5]
    notes = export_student(trainer.method, trainer.final_student(), tmp_path / "student", "float32", torch.float32)
    write_run(
        tmp_path / "student",
        {"kind": "student", "resolution": 64, **trainer.method.export_notes(), **notes},
        finished=True,
    )
    assert "Keep `guidance_scale=3.5`" in card_text(StudentFolder(tmp_path / "student"))
    with pytest.raises(UsageError, match=r"it is for guidance 3\.5"):
        StudentPipeline(tmp_path / "student", device="cpu").set_guidance(4.0)


def test_schnell_is_a_student_already(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is a student already") as error:
        load_teacher(flux1.make(tmp_path / "schnell", guidance_embeds=False))
    assert error.value.hint == "--teacher flux1-dev"
    with pytest.raises(UsageError, match=r"FLUX\.1-schnell, which is a student already"):
        load_teacher("flux1-schnell")


def test_the_layers_of_a_discriminator_are_of_the_picture(teacher: Teacher) -> None:
    batch = make_batch(teacher)
    features = teacher.features(teacher.network(), batch.x0, T, batch.condition)
    assert [tuple(feature.shape) for feature in features] == [(4, 32, 4, 4)] * 2
