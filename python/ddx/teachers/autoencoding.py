"""The autoencoder's side of a teacher: pictures to latents and back, scaled as the denoiser sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.device import send
from ddx.kernels.cpu_bfloat16 import wide_products


class Autoencoding(ABC):
    """What needs the autoencoder and its config alone."""

    device: torch.device
    dtype: torch.dtype
    vae_config: dict[str, Any]

    @abstractmethod
    def vae(self) -> nn.Module:
        """The frozen autoencoder."""

    @property
    def vae_dtype(self) -> torch.dtype:
        """What the autoencoder runs in: float32 instead of float16 where its config says that it overflows in that."""
        return torch.float32 if self.dtype == torch.float16 and self.vae_config.get("force_upcast") else self.dtype

    @property
    def scaling_factor(self) -> float | list[float]:
        """What raw latents are multiplied with (one value, or one a channel)."""
        factor: float = self.vae_config.get("scaling_factor") or 1.0
        deviations = self.vae_config.get("latents_std")
        return [factor / deviation for deviation in deviations] if deviations else factor

    @property
    def shift_factor(self) -> float | list[float]:
        """What is subtracted from raw latents before they are scaled."""
        shift: float | list[float] = self.vae_config.get("latents_mean") or self.vae_config.get("shift_factor") or 0.0
        return shift

    def _products(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Where the networks run: a CPU without bfloat16 instructions gets its products in float32."""
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        return wide_products(self.device, dtype)

    @property
    def compression(self) -> int:
        """Pixels a side of one latent cell."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    has_posterior: ClassVar[bool] = True
    """Whether the autoencoder gives a distribution of latents, and not just one."""

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What :meth:`encode_posterior` returns, of ``[B, 3, H, W]`` in [-1, 1]. Default: of an AutoencoderKL."""
        vae: Any = self.vae()
        posterior = vae.encode(pixels, return_dict=False)[0]
        return posterior.mode(), posterior.logvar

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` about [-1, 1] of unscaled latents."""
        vae: Any = self.vae()
        pixels: Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    def encode_images(self, images: Tensor) -> Tensor:
        """Unscaled latents, float32 ``[B, C, h, w]``, of uint8 pictures ``[B, H, W, 3]`` (tensor or array)."""
        return self.encode_posterior(images)[0]

    @torch.no_grad()
    def encode_posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and logarithm of the variance of the unscaled latents, float32 ``[B, C, h, w]``, of uint8 pictures.

        An autoencoder without :attr:`has_posterior` has no variance (None).
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"pictures must be uint8 [B, H, W, 3], got {images.dtype} {tuple(images.shape)}")
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255.0
        with self._products(self.vae_dtype):
            mean, logvar = self._encode_pixels((2.0 * pixels - 1.0).to(self.vae_dtype))
        return mean.float(), None if logvar is None else logvar.float()

    def scale(self, latents: Tensor) -> Tensor:
        """Unscaled latents as the denoiser sees them: ``(latents - shift) * factor``."""
        return (latents - self._channels(self.shift_factor, latents)) * self._channels(self.scaling_factor, latents)

    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`scale`."""
        return latents / self._channels(self.scaling_factor, latents) + self._channels(self.shift_factor, latents)

    @staticmethod
    def _channels(value: float | list[float], latents: Tensor) -> Tensor | float:
        if isinstance(value, int | float):
            return value
        return send(torch.tensor(value, dtype=latents.dtype), latents.device)[:, None, None]

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` about [-1, 1], in the autoencoder's dtype, of scaled latents; differentiable."""
        with self._products(self.vae_dtype):
            return self._decode_latents(self.unscale(latents.to(self.device, self.vae_dtype)))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, uint8 ``[B, H, W, 3]`` on the CPU, of scaled latents; rounded as diffusers rounds."""
        pixels = (self.decode_pixels(latents) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu()
        pictures: Tensor = (pixels * 255).round().to(torch.uint8)
        return pictures
