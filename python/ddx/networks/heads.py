"""Discriminators over the features of another network: a head for each layer, of one of three kinds.

conv       convolutions, one logit a position (Sauer et al. 2024, LADD)
fft        the map's low and its high frequencies apart, convolutions of their own for each
attention  learned query tokens that attend to all positions, one logit a token
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

KINDS = ("conv", "fft", "attention")
NUM_QUERIES = 4
LOW_SHARE = 0.25  # frequencies up to this part of the sampling rate, half of what there is, are low


class Discriminator(nn.Module):
    """One head a feature map, whatever the sizes of the maps."""

    def __init__(
        self, channels: Sequence[int], kind: str = "conv", *, width: int = 64, condition_width: int | None = None
    ) -> None:
        """Take the channels of each map; `condition_width` D lets logits depend on a condition `[B, D]`."""
        super().__init__()
        make = {"conv": ConvHead, "fft": FFTHead, "attention": AttentionHead}[kind]
        self.heads = nn.ModuleList(make(number, width, condition_width) for number in channels)

    def forward(self, features: Sequence[Tensor], condition: Tensor | None = None) -> Tensor:
        """Return logits float32 `[B, K]`, of all heads and positions, for maps `[B, C_k, h_k, w_k]`."""
        logits = [head(normalised(feature), condition) for head, feature in zip(self.heads, features, strict=True)]
        return torch.cat([value.float() for value in logits], dim=1)


class Projection(nn.Module):
    """What a condition adds to the logit of a hidden vector: their inner product (Miyato & Koyama 2018)."""

    def __init__(self, width: int, condition_width: int | None) -> None:
        super().__init__()
        self.last = nn.Linear(width, 1)
        self.embed = None if condition_width is None else nn.Linear(condition_width, width)

    def forward(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits `[B, N]` of hidden vectors `[B, N, width]`."""
        logits: Tensor = self.last(hidden).squeeze(-1)
        if self.embed is None or condition is None:
            return logits
        embedded: Tensor = self.embed(condition)
        return logits + (hidden * embedded[:, None]).mean(-1)


class ConvHead(nn.Module):
    """Two convolutions and a residual one between, one logit a position."""

    def __init__(self, channels: int, width: int, condition_width: int | None) -> None:
        super().__init__()
        self.inside = nn.Conv2d(channels, width, 1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.outside = Projection(width, condition_width)

    def forward(self, feature: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits `[B, h w]`."""
        hidden = functional.silu(self.inside(feature))
        hidden = hidden + functional.silu(self.middle(hidden))
        logits: Tensor = self.outside(hidden.flatten(2).transpose(1, 2), condition)
        return logits


class FFTHead(nn.Module):
    """A head for what is coarse in the map and one for what is fine; the two parts add up to the map."""

    def __init__(self, channels: int, width: int, condition_width: int | None) -> None:
        super().__init__()
        self.low = ConvHead(channels, width, condition_width)
        self.high = ConvHead(channels, width, condition_width)

    def forward(self, feature: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits `[B, 2 h w]`."""
        low, high = frequency_bands(feature)
        return torch.cat([self.low(low, condition), self.high(high, condition)], dim=1)


class AttentionHead(nn.Module):
    """Learned queries over the positions of the map, one logit a query."""

    def __init__(self, channels: int, width: int, condition_width: int | None) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(NUM_QUERIES, width))
        self.key_value = nn.Linear(channels, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.outside = Projection(width, condition_width)

    def forward(self, feature: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits `[B, NUM_QUERIES]`."""
        key, value = self.key_value(feature.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        queries = self.queries.to(key.dtype).expand(len(feature), -1, -1)
        seen = functional.scaled_dot_product_attention(queries, key, value)
        seen = seen + functional.silu(self.hidden(seen))
        logits: Tensor = self.outside(functional.silu(seen), condition)
        return logits


def normalised(feature: Tensor) -> Tensor:
    """Return the map in float32, each position at a root mean square of 1: layers differ in size by orders."""
    feature = feature.float()
    return feature * torch.rsqrt(feature.square().mean(dim=1, keepdim=True) + 1e-6)


def frequency_bands(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the low and the high frequencies of `[B, C, h, w]`, float32 of the same shape; their sum is the map."""
    feature = feature.float()
    height, width = feature.shape[-2:]
    down = torch.fft.fftfreq(height, device=feature.device)[:, None]
    along = torch.fft.rfftfreq(width, device=feature.device)
    keep = torch.hypot(down, along) <= LOW_SHARE
    low: Tensor = torch.fft.irfft2(torch.fft.rfft2(feature) * keep, s=(height, width))
    return low, feature - low
