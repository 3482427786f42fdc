"""A transformer with a learned variance; PixArt-α's too, which takes sizes at 128 cells a side."""

from pathlib import Path
from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

from pipelines import kl_autoencoder, t5_encoder, t5_tokenizer

EXACT = False  # the pipeline pads every prompt, and masks the padding


def make(folder: Path) -> Path:
    return make_pixart(folder, PixArtSigmaPipeline, use_additional_conditions=False)


def make_pixart(folder: Path, kind: Any, *, sample_size: int = 8, use_additional_conditions: bool | None) -> Path:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=40,
        sample_size=sample_size,
        patch_size=2,
        interpolation_scale=2,
        use_additional_conditions=use_additional_conditions,
    )
    vae = kl_autoencoder(4, scaling_factor=0.13025)
    tokenizer = t5_tokenizer()
    pipeline = kind(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(len(tokenizer), 40),
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
