"""The autoencoder stage: a small AutoencoderDC whose latents have zero mean and unit covariance.

SANA's pipeline knows one scalar `scaling_factor`, so the latents are whitened by the loss and not afterwards.
Noise on the latent makes the decoder indifferent to errors of that size, which are those of a diffusion model. After
the flow has its latents, the decoder goes on alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor

from ddx.training.teacher.config import TeacherConfig


def new_autoencoder(config: TeacherConfig) -> AutoencoderDC:
    """Return an untrained AutoencoderDC, its weights in channels-last order.

    Widths must double (the pixel-unshuffle shortcuts average or repeat whole groups); a first layer count of 0 puts
    the stem at half the resolution, where it costs a quarter.
    """
    widths, layers, levels = config.autoencoder_widths, config.autoencoder_layers, len(config.autoencoder_widths)
    autoencoder = AutoencoderDC(
        in_channels=3,
        latent_channels=config.latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )
    return autoencoder.to(memory_format=torch.channels_last)


def to_network_range(images: Tensor) -> Tensor:
    """Turn uint8 [B, H, W, 3] into float32 [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def whitening_loss(latents: Tensor) -> Tensor:
    """Mean squared distance of the channel covariance from the identity, plus that of the mean from zero."""
    values = latents.movedim(1, -1).flatten(0, -2)  # [B * h * w, C]
    mean = values.mean(dim=0)
    centred = values - mean
    covariance = centred.T @ centred / len(values)
    identity = torch.eye(values.shape[1], device=values.device)
    return F.mse_loss(covariance, identity) + mean.square().mean()


def reconstruction_loss(decoded: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (L1 + 2 L2, L2), means over pixels in [-1, 1]."""
    squared = F.mse_loss(decoded, images)
    return F.l1_loss(decoded, images) + 2.0 * squared, squared.detach()


def autoencoder_loss(
    autoencoder: AutoencoderDC, images: Tensor, noise: Tensor, *, noise_scale: float, whitening_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of encoder and decoder together, and its parts.

    images: float32 [B, 3, H, W] in [-1, 1]; noise: unit normal in the latents' shape.
    """
    latents = autoencoder.encode(images).latent
    reconstruction, squared = reconstruction_loss(autoencoder.decode(latents + noise_scale * noise).sample, images)
    whitening = whitening_loss(latents)
    return reconstruction + whitening_weight * whitening, {"mse": squared, "whitening": whitening.detach()}


def decoder_loss(
    autoencoder: AutoencoderDC, latents: Tensor, images: Tensor, noise: Tensor, *, noise_scale: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the decoder alone, on fixed unscaled latents [B, C, h, w]."""
    decoded = autoencoder.decode(latents + noise_scale * noise).sample
    reconstruction, squared = reconstruction_loss(decoded, images)
    return reconstruction, {"mse": squared}


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderDC, pictures: Tensor, batch_size: int = 64) -> Tensor:
    """Return unscaled latents float32 [N, C, h, w] of uint8 pictures [N, H, W, 3]."""
    chunks = torch.split(pictures, batch_size)
    return torch.cat([autoencoder.encode(to_network_range(chunk)).latent for chunk in chunks])


@torch.no_grad()
def decode_pictures(autoencoder: AutoencoderDC, latents: Tensor) -> Tensor:
    """Return uint8 pictures [N, H, W, 3] of unscaled latents."""
    decoded: Tensor = autoencoder.decode(latents).sample
    return ((decoded.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1)
