"""The SANA adapter against diffusers' own pipeline: text, denoiser, guidance, sampler, autoencoder, student."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline

from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.families.sana_text import PromptEncoder
from ddx.teachers.registry import load_teacher
from pipelines import make_sana

INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
PROMPTS = [
    "A Red Circle above a blue square ",
    "",
    "three yellow triangles",
    "ünïcödé ☃ and 日本",
    "a photograph of the house " * 40,  # 200 words
    "large " * 400,  # cut by the maximal length
    *(f"a cat and {number} dogs" for number in range(12)),
]


@pytest.fixture(scope="module")
def teacher(sana_folder: Path) -> Teacher:
    return load_teacher(sana_folder)


@pytest.fixture(scope="module")
def pipeline(sana_folder: Path) -> Any:
    pipe = SanaPipeline.from_pretrained(sana_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_text(pipeline: Any, prompts: list[str]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        encoded: tuple[torch.Tensor, ...] = pipeline.encode_prompt(prompts, complex_human_instruction=INSTRUCTION)
    return encoded


def assert_equals_pipeline(conditions: list[Condition], pipeline: Any, prompts: list[str]) -> None:
    tokens, mask, *_ = pipeline_text(pipeline, prompts)
    assert [len(condition.tokens[0]) for condition in conditions] == mask.sum(dim=1).tolist()
    for condition, row, real in zip(conditions, tokens, mask.bool(), strict=True):
        torch.testing.assert_close(condition.tokens[0], row[real], rtol=0, atol=2e-5)


def test_prompts_encode_as_in_the_pipeline(teacher: Teacher, pipeline: Any) -> None:
    conditions = teacher.encode_text(PROMPTS)
    assert_equals_pipeline(conditions, pipeline, PROMPTS)
    assert max(len(condition.tokens[0]) for condition in conditions) == 300
    assert (conditions[0].tokens[0, 1] - conditions[2].tokens[0, 1]).abs().max() > 1e-2  # they do tell prompts apart


def test_the_instruction_runs_once(teacher: Teacher) -> None:
    encoder = PromptEncoder(teacher.tokenizer(), teacher.text_encoder())
    lengths: list[int] = []
    hook = teacher.text_encoder().embed_tokens.register_forward_hook(
        lambda module, arguments, output: lengths.append(output.shape[1])
    )
    try:
        encoder.encode(["a cat", "a dog", "three red circles and a very small house"])
        encoder.encode(["a circle"])
    finally:
        hook.remove()
    assert lengths[0] == len(encoder.prefix_ids) > 100
    assert all(length <= 24 for length in lengths[1:])


def test_a_prompt_does_not_depend_on_its_neighbours(teacher: Teacher) -> None:
    alone = teacher.encode_text(["three yellow triangles"])[0]
    among = teacher.encode_text(PROMPTS)[2]
    assert torch.equal(alone.tokens, among.tokens)


def test_a_tokenizer_that_joins_across_the_border_falls_back_to_the_whole_text(teacher: Teacher, pipeline: Any) -> None:
    encoder = PromptEncoder(teacher.tokenizer(), teacher.text_encoder())
    ids = teacher.tokenizer().encode(encoder.instruction)
    encoder.prefix_ids = [*ids[:-2], ids[-1]]  # a prefix that no text shares
    conditions = encoder.encode(PROMPTS[:4])
    assert encoder._prefix is None
    assert_equals_pipeline(conditions, pipeline, PROMPTS[:4])


def test_a_short_sliding_window_is_exact_too(tmp_path: Path) -> None:
    import json

    folder = make_sana(tmp_path / "windowed", seed=3)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sliding_window": 32}))
    assert_equals_pipeline(
        load_teacher(folder).encode_text(PROMPTS[:5]), SanaPipeline.from_pretrained(folder), PROMPTS[:5]
    )


def test_the_null_condition_is_the_empty_negative_prompt(teacher: Teacher, pipeline: Any) -> None:
    *_, tokens, mask = pipeline_text(pipeline, ["a cat"])
    null = teacher.null_condition()
    assert null.tokens.shape[1] == int(mask.sum()) == 1
    torch.testing.assert_close(null.tokens[0], tokens[0][mask[0].bool()], rtol=0, atol=2e-5)


def test_guided_prediction_equals_the_padded_pipeline_and_one_doubled_batch(teacher: Teacher, pipeline: Any) -> None:
    prompts = PROMPTS[:4]
    tokens, mask, null_tokens, null_mask = pipeline_text(pipeline, prompts)
    x = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1.0, 0.7, 0.3, 0.01], dtype=torch.float64)
    with torch.no_grad():
        expected = pipeline.transformer(
            torch.cat([x, x]),
            encoder_hidden_states=torch.cat([null_tokens, tokens]),
            encoder_attention_mask=torch.cat([null_mask, mask]),
            timestep=torch.cat([t, t]).float() * 1000,
            return_dict=False,
        )[0]
        uncond, cond = expected.chunk(2)
        condition = Condition.cat(teacher.encode_text(prompts))
        scales = torch.tensor([1.0, 2.0, 4.5, 7.0])
        calls: list[int] = []
        hook = teacher.network().register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
        guided = teacher.guided(teacher.network(), x, t, condition, teacher.null_condition(), scales)
        hook.remove()
    assert calls == [8]
    torch.testing.assert_close(guided, uncond + scales[:, None, None, None] * (cond - uncond), rtol=0, atol=1e-5)
    assert (guided - cond)[1:].abs().max() > 1e-4


def test_time_reaches_the_network_in_full_precision(teacher: Teacher) -> None:
    seen: list[torch.Tensor] = []
    hook = teacher.network().register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["timestep"]), with_kwargs=True
    )
    t = torch.tensor([0.123456789, 1.0], dtype=torch.float64)
    with torch.no_grad():
        teacher.predict(teacher.network(), torch.randn(2, 8, 8, 8), t, teacher.null_condition().expand(2))
    hook.remove()
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], (t * 1000).float())


def test_sampling_equals_the_pipeline_with_the_euler_scheduler(teacher: Teacher, sana_folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(sana_folder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.set_progress_bar_config(disable=True)
    prompt, steps = "a red circle", 4
    latents = pipe(
        prompt,
        sigmas=[1 - i / steps for i in range(steps)],
        guidance_scale=4.5,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(5),
        use_resolution_binning=False,
        output_type="latent",
    )[0]
    (condition,) = teacher.encode_text([prompt])
    drawn = teacher.sample(
        condition, teacher.null_condition(), num_steps=steps, generators=[torch.Generator().manual_seed(5)]
    )
    torch.testing.assert_close(drawn, latents, rtol=0, atol=1e-5)


def test_a_picture_keeps_its_noise_among_neighbours(teacher: Teacher) -> None:
    alone = teacher.initial_noise([torch.Generator().manual_seed(7)])
    among = teacher.initial_noise([torch.Generator().manual_seed(seed) for seed in (6, 7, 8)])
    assert torch.equal(alone[0], among[1])


def test_pictures_decode_as_in_the_pipeline_and_encode_deterministically(teacher: Teacher, pipeline: Any) -> None:
    latents = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
    pictures = teacher.decode(latents)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    expected = (pipeline.image_processor.postprocess(decoded, output_type="np") * 255).round().astype("uint8")
    assert pictures.dtype == torch.uint8 and (pictures.numpy() == expected).all()
    assert pictures.float().std() > 1
    with torch.no_grad():
        encoded = pipeline.vae.encode(pipeline.image_processor.preprocess(pictures.numpy() / 255.0).float()).latent
    torch.testing.assert_close(teacher.encode_images(pictures), encoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(teacher.unscale(teacher.scale(latents)), latents)
    assert torch.equal(teacher.scale(latents), latents * 0.41407)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_saved_student_is_a_plain_pipeline_that_draws_by_our_formula(
    teacher: Teacher, tmp_path: Path, steps: int
) -> None:
    network = teacher.new_student_network()
    with torch.no_grad():
        network.proj_out.bias.add_(0.5)  # not the teacher any more
    teacher.save_student(tmp_path / "student", network)
    pipe = SanaPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    sigmas = [1 - i / steps for i in range(steps)]
    latents = pipe(
        "a red circle",
        sigmas=sigmas,
        guidance_scale=1.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        use_resolution_binning=False,
        output_type="latent",
    )[0]
    (condition,) = teacher.encode_text(["a red circle"])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 8, 8, 8, generator=generator)
    with torch.no_grad():
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            t = torch.tensor([sigma], dtype=torch.float64)
            x0 = teacher.process.convert(teacher.predict(network, x, t, condition), x, t, "flow", "x0")
            noise = torch.randn(1, 8, 8, 8, generator=generator)
            x = (1 - following) * x0 + following * noise
    torch.testing.assert_close(latents, x, rtol=0, atol=1e-5)


def test_a_student_in_bfloat16_shares_nothing_with_its_teacher(teacher: Teacher, tmp_path: Path) -> None:
    network = teacher.new_student_network(torch.float32)
    network.proj_out.weight.data.zero_()
    assert teacher.network().proj_out.weight.abs().sum() > 0
    teacher.save_student(tmp_path / "student", network, dtype=torch.bfloat16)
    saved = SanaPipeline.from_pretrained(tmp_path / "student", dtype=torch.bfloat16).transformer
    assert saved.dtype == torch.bfloat16 and not saved.proj_out.weight.any()
    config = (tmp_path / "student" / "transformer" / "config.json").read_text()
    assert str(teacher.folder) not in config


def test_a_student_trains_with_gradient_checkpointing(teacher: Teacher) -> None:
    network = teacher.new_student_network()
    x, t = torch.randn(2, 8, 8, 8), torch.tensor([0.2, 0.9], dtype=torch.float64)
    condition = teacher.null_condition().expand(2)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        teacher.predict(network, x, t, condition).square().mean().backward()
        gradients.append(network.patch_embed.proj.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not any(parameter.requires_grad for parameter in teacher.network().parameters())


def test_the_time_embedding_linear_shifts_the_output_through_its_bias(teacher: Teacher) -> None:
    network = teacher.new_student_network()
    linear = teacher.time_embedding_linear(network)
    x, t = torch.randn(1, 8, 8, 8), torch.tensor([0.5], dtype=torch.float64)
    with torch.no_grad():
        before = teacher.predict(network, x, t, teacher.null_condition())
        extra = torch.randn_like(linear.bias)
        hook = linear.register_forward_hook(lambda module, arguments, output: output + extra)
        hooked = teacher.predict(network, x, t, teacher.null_condition())
        hook.remove()
        linear.bias += extra
        folded = teacher.predict(network, x, t, teacher.null_condition())
    assert (before - hooked).abs().max() > 1e-3
    torch.testing.assert_close(hooked, folded, rtol=0, atol=1e-5)


def test_components_load_when_used_and_unload(sana_folder: Path) -> None:
    teacher = load_teacher(sana_folder)
    assert teacher.latent_shape() == (8, 8, 8) and teacher.text_width == 32 and not teacher._parts
    teacher.encode_text(["a cat"])
    assert "vae" not in teacher._parts and "transformer" not in teacher._parts
    teacher.network()
    teacher.unload("text_encoder", "denoiser")
    assert set(teacher._parts) == {"tokenizer"}
    assert len(teacher.encode_text(["a cat"])) == 1


def test_the_fingerprint_names_what_shapes_a_store(teacher: Teacher, tmp_path: Path) -> None:
    fingerprint = teacher.fingerprint()
    assert fingerprint == load_teacher(make_sana(tmp_path / "same")).fingerprint()
    other = load_teacher(make_sana(tmp_path / "other", seed=1)).fingerprint()
    assert {key for key in fingerprint if fingerprint[key] != other[key]} == {"weights"}
    assert {key for key in fingerprint if fingerprint[key] != teacher.fingerprint(128)[key]} == {
        "resolution",
        "latent_shape",
    }


def test_float16_keeps_autoencoder_and_text_in_bfloat16(sana_folder: Path) -> None:
    teacher = load_teacher(sana_folder, dtype="fp16")
    assert teacher.dtype == torch.float16
    assert teacher.vae_dtype == teacher.text_dtype == torch.bfloat16


def test_bfloat16_is_close_to_float32_in_every_part(teacher: Teacher, sana_folder: Path) -> None:
    low = load_teacher(sana_folder, dtype="bf16")
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.9, 0.2], dtype=torch.float64)
    results = []
    for one in (teacher, low):
        condition = Condition.cat(one.encode_text(["a red circle", "two dogs and a cat"]))
        with torch.no_grad():
            prediction = one.predict(one.network(), x, t, condition)
        results.append((condition.tokens.float(), prediction, one.encode_images(pictures), one.decode(x).float()))
    for name, exact, rounded in zip(("text", "prediction", "latents", "pictures"), *results, strict=True):
        assert rounded.dtype == torch.float32, name
        error = (rounded - exact).abs().max() / exact.abs().max()
        assert 0 < error < 0.06, name


@pytest.mark.parametrize("precision", ["float64", "autocast"])
def test_the_dual_prediction_is_the_derivative_along_a_direction(teacher: Teacher, precision: str) -> None:
    network = teacher.new_student_network(torch.float64 if precision == "float64" else torch.float32)
    generator = torch.Generator().manual_seed(3)
    x_t, dx_t = torch.randn(2, 2, *teacher.latent_shape(), generator=generator, dtype=torch.float64)
    t, dt = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.tensor([0.1, -0.2], dtype=torch.float64)
    condition = Condition.cat(teacher.encode_text(["a red circle", "two blue squares to the left"]))

    step = 1e-4  # times reach the network in float32, whose last place decides how small a step may be
    exact = teacher.new_student_network(torch.float64)
    ahead, behind = (
        teacher.predict(exact, x_t + side * step * dx_t, t + side * step * dt, condition).double() for side in (1, -1)
    )
    difference = (ahead - behind) / (2 * step)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output, tangent = teacher.predict_dual(network, x_t, dx_t, t, dt, condition)
    allowed = 0.05 if precision == "autocast" else 0.002
    plain = teacher.predict(exact, x_t, t, condition)
    assert (output - plain).norm() <= allowed * plain.norm()
    assert (tangent - difference).norm() <= allowed * difference.norm()
    assert not output.requires_grad and not tangent.requires_grad
