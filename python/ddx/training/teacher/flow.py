"""The flow-matching stage: the SANA transformer, trained on cached latents and the text of a frozen encoder.

x_t = (1 - t) x0 + t eps, the network takes 1000 t and predicts the velocity eps - x0 (Xie et al. 2024).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from ddx.process import FlowProcess
from ddx.scenes.render import RESOLUTION
from ddx.training.teacher.config import TeacherConfig

FLOW_SHIFT = 3.0
"""Shift of the sampling times towards noise, where a scene's layout is decided; SANA's own."""


def new_transformer(config: TeacherConfig) -> SanaTransformer2DModel:
    """Return an untrained SANA transformer: every residual branch to the text and the output start at zero."""
    heads = config.width // config.head_width
    transformer = SanaTransformer2DModel(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_attention_heads=heads,
        attention_head_dim=config.head_width,
        num_layers=config.layers,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=config.head_width,
        cross_attention_dim=config.width,
        caption_channels=config.text_width,
        mlp_ratio=config.mlp_ratio,
        sample_size=RESOLUTION // config.downsampling,
        patch_size=1,
        interpolation_scale=1.0,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(transformer.time_embed.linear.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def sample_times(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Draw times in (0, 1), logit-normal (Esser et al. 2024). Returns float64 [count]."""
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.sigmoid(mean + std * normal)


def flow_loss(
    transformer: nn.Module, latents: Tensor, noise: Tensor, times: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """Return the squared error of the velocity for each row, [B].

    latents and noise: float32 [B, C, h, w]; times: float64 [B]; tokens: [B, L, D]; mask: [B, L], true on real tokens.
    """
    weight = times.float()[:, None, None, None]
    noisy = (1.0 - weight) * latents + weight * noise
    velocity = transformer(
        noisy,
        encoder_hidden_states=tokens,
        encoder_attention_mask=mask.float(),
        timestep=(1000.0 * times).float(),
        return_dict=False,
    )[0]
    return F.mse_loss(velocity, noise - latents, reduction="none").mean(dim=(1, 2, 3))


@torch.no_grad()
def sample(
    transformer: nn.Module, noise: Tensor, tokens: Tensor, mask: Tensor, *, steps: int, guidance: float
) -> Tensor:
    """Return latents by Euler steps on the pipeline's shifted grid, under `null + guidance (cond - null)`.

    The null condition is the first token alone. noise: [B, C, h, w]. At guidance 1 the null pass is left out.
    """
    null_mask = torch.zeros_like(mask)
    null_mask[:, 0] = True
    latents = noise
    grid = FlowProcess.shift(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), FLOW_SHIFT).tolist()
    for time, earlier in pairwise(grid):
        timestep = torch.full((len(noise),), 1000.0 * time, device=noise.device)
        if guidance == 1.0:
            velocity = transformer(latents, tokens, timestep, encoder_attention_mask=mask.float(), return_dict=False)[0]
        else:
            doubled = transformer(
                torch.cat([latents, latents]),
                torch.cat([tokens, tokens]),
                torch.cat([timestep, timestep]),
                encoder_attention_mask=torch.cat([null_mask, mask]).float(),
                return_dict=False,
            )[0]
            null, cond = doubled.chunk(2)
            velocity = null + guidance * (cond - null)
        latents = latents + (earlier - time) * velocity
    return latents
