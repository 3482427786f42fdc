"""Both kinds of blocks, normalised latents of two by two cells, and 28 layers of Qwen3, of which three are read."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor
from torch.nn.functional import pixel_unshuffle
from transformers import Qwen3ForCausalLM

from pipelines import qwen3_config, qwen_tokenizer

EXACT = False  # the pipeline undoes the normalisation of its latents before it returns them

MEAN = torch.linspace(-0.3, 0.4, 16)
VARIANCE = torch.linspace(0.5, 3.0, 16)


def make(folder: Path) -> Path:
    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    with torch.no_grad():  # the gates of a new network are almost shut, and hide what blocks do
        for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
            transformer.get_submodule(name).linear.weight.mul_(20)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 8, 8, 16),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
    )
    vae.bn.running_mean.copy_(MEAN)
    vae.bn.running_var.copy_(VARIANCE)
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(qwen3_config(tokenizer, 16, layers=28)),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def unpacked(latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
    deviation = (VARIANCE + 1e-4).sqrt()
    return (pixel_unshuffle(latents, 2) - MEAN[:, None, None]) / deviation[:, None, None]


def fresh(noise: Tensor, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    return noise.reshape(1, height * width, channels).transpose(1, 2).reshape(1, channels, height, width)


def layout(latents: Tensor) -> Tensor:
    return latents.flatten(2).transpose(1, 2)
