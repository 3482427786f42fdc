"""Blocks of both kinds, and the embedding of guidance."""

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import pixel_unshuffle
from transformers import CLIPTextConfig, CLIPTextModel

from ddx.teachers.parts.packing import unpack
from pipelines import clip_tokenizer, flux_autoencoder, t5_encoder, t5_tokenizer


def make(folder: Path, *, guidance_embeds: bool = True) -> Path:
    tokenizer, second = clip_tokenizer(), t5_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        **ids,
    )
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        pooled_projection_dim=24,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=flux_autoencoder(4),
        text_encoder=CLIPTextModel(clip),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(len(second), 40),
        tokenizer_2=second,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def unpacked(latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return unpack(latents, shape)


fresh = unpacked


def layout(latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
