"""Both streams, an autoencoder of videos with statistics a channel, a template that is 34 tokens before the prompt."""

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from torch.nn.functional import pixel_unshuffle
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ddx.teachers.parts.packing import unpack
from pipelines import qwen_tokenizer

LENGTH_STEP = 1


def make(folder: Path) -> Path:
    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 0.8, 1.2, 0.9],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
    )
    pipeline = QwenImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=encoder, tokenizer=tokenizer, transformer=transformer
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def guided(scale: float) -> dict[str, Any]:
    return {"true_cfg_scale": scale, "negative_prompt": " "}


def unpacked(latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return unpack(latents, shape)


fresh = unpacked


def layout(latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
