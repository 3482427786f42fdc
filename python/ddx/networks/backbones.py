"""Frozen networks whose features of pictures a discriminator looks at.

Either the encoder of a teacher's own autoencoder, which is always there, or a vision model of transformers, from a
folder or the hub: a transformer's tokens or a convolutional network's maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddx.device import send
from ddx.errors import DdxError, first_line
from ddx.teachers.features import outputs_of

NUM_LAYERS = 4
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(Protocol):
    """Features `[B, C_k, h_k, w_k]` of pictures float `[B, 3, H, W]` in [-1, 1], differentiable by them."""

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Return the features, from early to late."""


class EncoderBackbone:
    """The blocks on the way down of an autoencoder's encoder."""

    def __init__(self, autoencoder: nn.Module) -> None:
        self.encoder: Any = autoencoder.get_submodule("encoder")

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        with outputs_of(self.encoder.down_blocks) as found:
            self.encoder(pixels.to(next(self.encoder.parameters()).dtype))
        return [value for value in found if value.ndim == 4]


class VisionBackbone:
    """Evenly spaced layers of a vision model of transformers, on pictures resized and normalised as ImageNet's are."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        size = getattr(self.model.config, "image_size", None)
        self.size = size if isinstance(size, int) else None

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        mean, std = (send(torch.tensor(value), pixels.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
        if self.size is not None and tuple(pixels.shape[-2:]) != (self.size, self.size):
            shape = (self.size, self.size)
            pixels = functional.interpolate(pixels.float(), shape, mode="bicubic", antialias=True, align_corners=False)
        states = self.model(((pixels + 1.0) / 2.0 - mean) / std, output_hidden_states=True).hidden_states
        chosen = _spread(len(states))
        return [_as_map(states[index]) for index in chosen]


def load_backbone(name: str, device: torch.device) -> VisionBackbone:
    """Return the vision model at a path or hub id. DdxError with the cure where it cannot be loaded."""
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise DdxError(
            f"no vision model at {name!r}: {first_line(error)}",
            hint=f"with a network, run `hf download {name}`; or give --backbone a folder that save_pretrained wrote, "
            "or leave it away for the encoder of the teacher's own autoencoder",
        ) from error
    return VisionBackbone(model.to(device))


def _spread(count: int) -> Sequence[int]:
    """Return up to `NUM_LAYERS` indices of `count` states, evenly spaced: the last one among them, not the first."""
    number = min(NUM_LAYERS, count - 1)
    return [round((count - 1) * (step + 1) / number) for step in range(number)]


def _as_map(state: Tensor) -> Tensor:
    """Return a map `[B, C, h, w]`: tokens `[B, N, D]` without those that stand before the picture's, a square."""
    if state.ndim == 4:
        return state
    side = math.isqrt(state.shape[1])
    picture: Tensor = state[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return picture
