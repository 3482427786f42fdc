"""Refiners and joint blocks of both streams, pad tokens that are not zero, and a Qwen3 behind a chat template."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from pipelines import flux_autoencoder, qwen3_config, qwen_tokenizer

TIMES = (1000.0, 0.0)
SIGN = -1.0


def guided(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale - 1.0}


def make(folder: Path) -> Path:
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=40,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flux_autoencoder(4),
        text_encoder=Qwen3Model(qwen3_config(tokenizer, 40, layers=3)),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
