"""A student is a plain pipeline: what its call computes, and what it does not depend on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ddx.checkpoints.folder import Snapshot, save_checkpoint
from ddx.errors import DdxError, UsageError
from ddx.kernels import dispatch
from ddx.run_record import write_run
from ddx.sampling.card import KERNEL_DECIBELS
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.student import StudentFolder
from ddx.teachers.families.sana_fused import is_fused, unfuse
from ddx.teachers.registry import load_teacher
from pipelines import make_sana
from saved_by_ranks import save_by_ranks
from students import make_student, opened

PROMPTS = ("a red circle above a blue square", "two small cats", "a house in the light of a green dog")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flow_call_is_multistep_consistency_sampling(flow_student: Path, steps: int) -> None:
    """x0 = x - sigma v(x, sigma), then x = (1 - sigma') x0 + sigma' eps with the next draw of the same generator."""
    student = StudentPipeline(flow_student, device="cpu")
    teacher = opened(flow_student)
    generator = torch.Generator().manual_seed(5)
    condition = teacher.encode_text(PROMPTS[:1])[0]
    x = torch.randn(1, *teacher.latent_shape(), generator=generator)
    times = [(steps - i) / steps for i in range(steps)] + [0.0]
    with torch.no_grad():
        for now, after in pairwise(times):
            t = torch.tensor([now], dtype=torch.float64)
            x0 = x - now * teacher.predict(teacher.network(), x, t, condition)
            x = (1 - after) * x0 + after * torch.randn(x.shape, generator=generator)
    latents = _latents(student, PROMPTS[0], 5, steps)
    torch.testing.assert_close(latents, x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 3])
def test_vp_call_is_lcm_sampling(tmp_path: Path, kind: str, steps: int) -> None:
    """f = c_skip x + c_out x0 at LCM's grid, and noise of the next time between the steps (Luo et al. 2023)."""
    folder = make_student(kind, tmp_path / kind)
    student = StudentPipeline(folder, device="cpu")
    teacher = opened(folder)
    process, generator = teacher.process, torch.Generator().manual_seed(1)
    condition = teacher.encode_text(PROMPTS[:1])[0]
    x = torch.randn(1, *teacher.latent_shape(), generator=generator)
    times = [(50 - int(i * 50 / steps)) * 20 - 1 for i in range(steps)]
    with torch.no_grad():
        for number, time in enumerate(times):
            t = torch.tensor([float(time)], dtype=torch.float64)
            prediction = teacher.predict(teacher.network(), x, t, condition)
            x0 = process.convert(prediction, x, t, teacher.prediction, "x0")
            scaled = 10.0 * time
            x = 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25) ** 0.5 * x0
            if number + 1 < steps:
                after = torch.tensor([float(times[number + 1])], dtype=torch.float64)
                x = process.add_noise(x, torch.randn(x.shape, generator=generator), after)
    latents = _latents(student, PROMPTS[0], 1, steps)
    torch.testing.assert_close(latents, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_flow_sigmas_waste_no_step(flow_student: Path) -> None:
    files = StudentFolder(flow_student)
    assert files.call_arguments(1)["sigmas"] == [1.0]
    assert files.call_arguments(4)["sigmas"] == [1.0, 0.75, 0.5, 0.25]
    student = StudentPipeline(flow_student, device="cpu")
    _latents(student, PROMPTS[0], 0, 2)
    assert student.pipeline.scheduler.sigmas.tolist() == [1.0, 0.5, 0.0]
    assert student.pipeline.scheduler.timesteps.tolist() == [1000.0, 500.0]


@pytest.mark.parametrize("family", ["flow_student", "vp_student"])
def test_a_picture_does_not_depend_on_its_neighbours(family: str, request: pytest.FixtureRequest) -> None:
    student = StudentPipeline(request.getfixturevalue(family), device="cpu")
    together = student.draw(PROMPTS, [0, 1, 2], 2, together=True)
    swapped = student.draw([PROMPTS[2], PROMPTS[0], PROMPTS[1]], [2, 0, 1], 2, together=True)
    alone = student.draw(PROMPTS, [0, 1, 2], 2)
    for number, other in ((0, 1), (1, 2), (2, 0)):
        assert _difference(together[number], swapped[other]) <= 1
        assert _difference(together[number], alone[number]) <= 1
    assert _difference(alone[0], student.draw(PROMPTS[:1], [1], 2)[0]) > 1  # the seed decides


@pytest.mark.parametrize("family", ["flow_student", "vp_student"])
def test_encoded_prompts_draw_the_same_pictures(family: str, request: pytest.FixtureRequest) -> None:
    from ddx.teachers.condition import Condition

    folder = request.getfixturevalue(family)
    student = StudentPipeline(folder, device="cpu")
    condition = Condition.cat(opened(folder).encode_text(PROMPTS))
    drawn = student.draw_conditions(condition, [3, 4, 5], 2)
    assert drawn.dtype == np.uint8 and drawn.shape == (3, 64, 64, 3)
    for picture, expected in zip(drawn, student.draw(PROMPTS, [3, 4, 5], 2), strict=True):
        assert np.abs(picture.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_the_shipped_dtype_is_used(tmp_path: Path) -> None:
    half = StudentFolder(make_student("flow", tmp_path / "half", dtype=torch.float16))
    assert half.component_dtypes() == {"default": "bfloat16", "transformer": "float16"}  # Gemma overflows in float16
    assert half.component_dtypes("float32") == {"default": "float32"}
    student = StudentPipeline(half.folder, device="cpu")
    assert student.pipeline.transformer.dtype == torch.float16
    assert student.pipeline.vae.dtype == student.pipeline.text_encoder.dtype == torch.bfloat16


def test_guidance_is_folded_again_from_the_checkpoint(tmp_path: Path) -> None:
    from ddx.networks.guidance import GUIDANCE, add_guidance_embedder, fold_guidance

    folder = make_student("flow", tmp_path / "guided", guidance=4.5, guidance_range=[4.0, 6.0])
    teacher = load_teacher(tmp_path / "guided-teacher")
    network = add_guidance_embedder(teacher, teacher.new_student_network())
    embedder = network.get_submodule(GUIDANCE)
    torch.nn.init.normal_(embedder.get_parameter("last.weight"), std=0.3)
    teacher.save_student(folder, fold_guidance(teacher, network, 4.5))
    save_by_ranks(folder / "checkpoints", 10, {"ema": network.state_dict()}, {}, 3, ("ema",))

    student = StudentPipeline(folder, device="cpu")
    before = student.draw(PROMPTS[:1], [0], 1)[0]
    student.set_guidance(6.0)
    expected = fold_guidance(teacher, network, 6.0).state_dict()
    for name, value in student.pipeline.transformer.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    assert _difference(before, student.draw(PROMPTS[:1], [0], 1)[0]) > 0
    with pytest.raises(UsageError, match="outside 4 to 6") as caught:
        student.set_guidance(9.0)
    assert caught.value.hint == "--guidance 6"


def test_other_guidance_is_refused_where_nothing_was_kept(flow_student: Path, tmp_path: Path) -> None:
    student = StudentPipeline(flow_student, device="cpu")
    student.set_guidance(4.5)  # the one that it has
    with pytest.raises(UsageError, match="distilled at one guidance scale: its weights hold guidance"):
        student.set_guidance(3.0)
    folder = make_student("flow", tmp_path / "bare", guidance=4.5, guidance_range=[4.0, 6.0])
    with pytest.raises(DdxError, match="checkpoints of bare are not there"):
        StudentPipeline(folder, device="cpu").set_guidance(5.0)


def test_what_is_no_student_is_named(tmp_path: Path, vp_student: Path) -> None:
    with pytest.raises(UsageError, match="holds no student"):
        StudentFolder(tmp_path)
    with pytest.raises(UsageError, match="no student at"):
        StudentFolder(tmp_path / "missing")
    with pytest.raises(UsageError, match="is not a device"):
        StudentPipeline(vp_student, device="gpu")
    write_run(tmp_path / "half", {"kind": "student"}, finished=False)
    with pytest.raises(DdxError, match="not finished") as caught:
        StudentFolder(tmp_path / "half")
    assert "ddx distill" in str(caught.value.hint)
    with pytest.raises(UsageError, match="more than the 50 noise levels"):
        StudentPipeline(vp_student, device="cpu").draw(PROMPTS[:1], [0], 51)


def _latents(student: StudentPipeline, prompt: str, seed: int, steps: int) -> torch.Tensor:
    arguments = student.files.call_arguments(steps)
    generator = torch.Generator().manual_seed(seed)
    latents: torch.Tensor = student.pipeline(
        prompt=prompt, generator=generator, output_type="latent", **arguments
    ).images
    return latents


def _difference(first: object, second: object) -> int:
    """The largest difference of two pictures, in grey levels."""
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())


def test_the_kernels_draw_what_the_card_says_they_draw(triton_path: None, tmp_path: Path) -> None:
    ours = StudentPipeline(make_student("flow", tmp_path / "student", layers=1), device="cpu")
    assert is_fused(ours.pipeline.transformer)
    picture = np.asarray(ours.draw(PROMPTS[:1], [3], 1)[0], dtype=float)
    unfuse(ours.pipeline.transformer)
    stock = np.asarray(ours.draw(PROMPTS[:1], [3], 1)[0], dtype=float)
    assert stock.std() > 1, "an empty picture tells nothing"
    error = np.square(picture - stock).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-12)) >= KERNEL_DECIBELS


def test_without_the_kernels_every_bit_is_diffusers_own(flow_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    monkeypatch.setenv("DDX_KERNELS", "torch")
    dispatch.backend.cache_clear()
    assert dispatch.backend("cuda") == "torch"  # on a GPU too
    ours = StudentPipeline(flow_student, device="cpu")
    assert not is_fused(ours.pipeline.transformer)
    stock = DiffusionPipeline.from_pretrained(flow_student, use_safetensors=True)
    generator = torch.Generator().manual_seed(3)
    expected = stock(PROMPTS[0], generator=generator, **ours.files.call_arguments(2)).images[0]
    np.testing.assert_array_equal(np.asarray(ours.draw(PROMPTS[:1], [3], 2)[0]), np.asarray(expected))
    dispatch.backend.cache_clear()


def test_guidance_is_folded_again_beside_the_length_of_the_steps(tmp_path: Path) -> None:
    from ddx.methods.base import NetworkSpec
    from ddx.methods.shortcut import Shortcut, ShortcutConfig
    from ddx.networks.guidance import GUIDANCE, INTERVAL, fold
    from ddx.training.export import export_student

    teacher = load_teacher(make_sana(tmp_path / "teacher"))
    method = Shortcut(ShortcutConfig(guidance_min=4.0, guidance_max=6.0), teacher)
    network = method.build(NetworkSpec(name="student")).eval()
    for name in (GUIDANCE, INTERVAL):
        torch.nn.init.normal_(network.get_parameter(f"{name}.last.weight"), std=0.3)
    folder = tmp_path / "student"
    notes = export_student(method, network, folder, "float32", torch.float32)
    write_run(folder, {"kind": "student", **method.export_notes(), **notes}, finished=True)
    save_checkpoint(folder / "checkpoints", 10, Snapshot({"ema": network.state_dict()}, {}), keep=1)

    student = StudentPipeline(folder, device="cpu")
    student.set_guidance(6.0)
    for steps in (1, 2, 4, 1):
        student.draw(PROMPTS[:1], [0], steps)
        expected = fold(teacher, network, {GUIDANCE: 6.0, INTERVAL: 1.0 / steps}).state_dict()
        for name, value in student.pipeline.transformer.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-6)
