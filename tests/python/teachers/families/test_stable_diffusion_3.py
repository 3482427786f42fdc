"""Stable Diffusion 3 as first published: no second attentions, no norms on queries and keys. And its long texts."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ddx.teachers.registry import load_teacher
from tiny import open_pipeline, stable_diffusion_3


def test_the_network_without_the_branches_of_3_5(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = stable_diffusion_3.make(tmp_path / "sd3", dual_attention_layers=(), qk_norm=None)
    teacher = load_teacher(folder)
    scheduler, _ = teacher.sampling_scheduler(2, teacher.latent_shape())
    pipeline = open_pipeline(folder, scheduler=FlowMatchEulerDiscreteScheduler.from_config(scheduler.config))
    found = pipeline(
        "a red cat",
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=2,
        sigmas=[1.0, 0.5],
        guidance_scale=3.0,
        output_type="latent",
    ).images
    (condition,) = teacher.encode_text(["a red cat"])
    noise = teacher.initial_noise([torch.Generator().manual_seed(5)])
    drawn = teacher.sample(condition, teacher.null_condition(), num_steps=2, guidance=3.0, noise=noise)
    torch.testing.assert_close(drawn, found, rtol=0, atol=3e-5 * float(found.abs().max()))


def test_t5_reads_what_the_clips_do_not(tmp_path: Path) -> None:
    teacher = load_teacher(stable_diffusion_3.make(tmp_path / "sd3"))
    words = " ".join(["the"] * 255)
    assert teacher.cut(words) is None
    cut = teacher.cut(f"{words} cat")
    assert cut is not None and (cut.given, cut.kept, cut.left_out) == (256, 255, "cat")
    long, longer, longest = teacher.encode_text([" ".join(["the"] * 80), " ".join(["the"] * 90), f"{words} cat"])
    assert torch.equal(long.tokens[:, :77], longer.tokens[:, :77])
    assert long.tokens.shape == longest.tokens.shape == (1, 77 + 256, 96)
    assert not torch.equal(long.tokens[:, 77:], longer.tokens[:, 77:])
    assert torch.equal(longest.tokens, teacher.encode_text([words])[0].tokens)
