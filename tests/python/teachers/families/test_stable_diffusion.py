"""The Stable Diffusion adapter against diffusers' own pipeline, for noise and for v prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from ddx.errors import DdxError
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher

PROMPTS = ["the red cat", "", "a very long prompt " * 30, *(f"cat {number}" for number in range(9))]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, stable_diffusion_folder: Path, v_prediction_folder: Path) -> Path:
    return stable_diffusion_folder if request.param == "epsilon" else v_prediction_folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(folder)


def open_pipeline(folder: Path, **components: Any) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder, requires_safety_checker=False, **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_prediction_kind_comes_from_the_scheduler(stable_diffusion_folder: Path, v_prediction_folder: Path) -> None:
    assert load_teacher(stable_diffusion_folder).prediction == "eps"
    teacher = load_teacher(v_prediction_folder)
    assert teacher.prediction == "v" and teacher.process.zero_terminal_snr


def test_prompts_encode_as_in_the_pipeline(teacher: Teacher, folder: Path) -> None:
    pipe = open_pipeline(folder)
    with torch.no_grad():
        tokens, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    conditions = teacher.encode_text(PROMPTS)
    assert all(condition.tokens.shape == (1, 77, 32) and condition.mask.all() for condition in conditions)
    torch.testing.assert_close(Condition.cat(conditions).tokens, tokens, rtol=0, atol=2e-5)
    torch.testing.assert_close(teacher.null_condition().tokens, negative[:1], rtol=0, atol=2e-5)
    assert (conditions[0].tokens - conditions[1].tokens).abs().max() > 0.1


def test_sampling_equals_the_pipeline_with_ddim(teacher: Teacher, folder: Path) -> None:
    scheduler = DDIMScheduler.from_config(
        json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    latents = open_pipeline(folder, scheduler=scheduler)(
        "the red cat",
        num_inference_steps=4,
        guidance_scale=5.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    )[0]
    (condition,) = teacher.encode_text(["the red cat"])
    generators = [torch.Generator().manual_seed(5)]
    drawn = teacher.sample(condition, teacher.null_condition(), num_steps=4, guidance=5.0, generators=generators)
    torch.testing.assert_close(drawn, latents, rtol=1e-5, atol=1e-5)


def test_pictures_round_trip_through_the_pipelines_autoencoder(teacher: Teacher, folder: Path) -> None:
    pipe = open_pipeline(folder)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pictures = teacher.decode(latents)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        expected = (pipe.image_processor.postprocess(decoded, output_type="np") * 255).round().astype("uint8")
        encoded = pipe.vae.encode(pipe.image_processor.preprocess(pictures.numpy() / 255.0).float()).latent_dist.mode()
    assert (pictures.numpy() == expected).all()
    torch.testing.assert_close(teacher.encode_images(pictures), encoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_saved_student_is_a_plain_pipeline_that_draws_by_the_consistency_formula(
    teacher: Teacher, tmp_path: Path, steps: int
) -> None:
    network = teacher.new_student_network()
    with torch.no_grad():
        network.conv_out.bias.add_(0.1)
    teacher.save_student(tmp_path / "student", network)
    latents = open_pipeline(tmp_path / "student")(
        "the red cat",
        num_inference_steps=steps,
        guidance_scale=1.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    )[0]
    (condition,) = teacher.encode_text(["the red cat"])
    grid = [999 - 20 * (50 * i // steps) for i in range(steps)]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        for number, step in enumerate(grid):
            t = torch.tensor([step], dtype=torch.float64)
            x0 = teacher.process.convert(teacher.predict(network, x, t, condition), x, t, teacher.prediction, "x0")
            scaled = 10.0 * t
            skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
            x = (out * x0 + skip * x).float()
            if number + 1 < steps:
                noise = torch.randn(1, 4, 8, 8, generator=generator)
                x = teacher.process.add_noise(x, noise, torch.tensor([grid[number + 1]], dtype=torch.float64))
    scale = x.abs().max().item()  # a noise prediction at t = 999 is multiplied by sigma / alpha = 14.6
    torch.testing.assert_close(latents, x, rtol=0, atol=2e-5 * scale)


def test_a_student_trains_with_gradient_checkpointing_and_has_a_time_embedding(teacher: Teacher) -> None:
    network = teacher.new_student_network()
    network.enable_gradient_checkpointing()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 900.0], dtype=torch.float64)
    teacher.predict(network, x, t, teacher.null_condition().expand(2)).square().mean().backward()
    linear = teacher.time_embedding_linear(network)
    assert linear.bias.grad.abs().max() > 0 and linear.out_features == linear.in_features


def test_noise_prediction_at_zero_terminal_snr_is_refused(v_prediction_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(v_prediction_folder, tmp_path / "wrong"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "epsilon"}))
    with pytest.raises(DdxError, match="zero terminal SNR") as error:
        load_teacher(folder)
    assert error.value.hint is not None and "v_prediction" in error.value.hint
