"""Metrics of single pictures without a network: each is one number a picture, from RGB in [0, 1].

    Y = 0.2126 R + 0.7152 G + 0.0722 B          luma, of the values as stored (Rec. 709)
    brightness = mean Y    contrast = std Y
    saturation = mean(V S) / mean(V),  V = max(R, G, B),  V S = V - min(R, G, B)     HSV, weighted by value
    clipped    = share of the channels' values that are 0 or 255
    octave k   = sum C(Y)^2 over 2^-(k+1) < f <= 2^-k, over the number of pixels;  f: cycles a pixel

C is the orthonormal cosine transform (DCT-II): the Fourier transform of the picture and its mirror images. Without
these the jump between opposite borders fills the fine octaves, and hides a blur. The first octave also has the corners
of the spectrum (f > 1/2), the last one all that is slower but for the mean: together they are the variance of Y
(Parseval).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)
NUM_OCTAVES = 5


def brightness(pictures: Tensor) -> Tensor:
    """Return the mean luma, `[N]`, of pictures uint8 `[N, H, W, 3]`."""
    return luma(pictures).mean(dim=(1, 2))


def contrast(pictures: Tensor) -> Tensor:
    """Return the standard deviation of luma, `[N]`, of pictures uint8 `[N, H, W, 3]`."""
    return luma(pictures).flatten(1).std(dim=1, correction=0)


def saturation(pictures: Tensor) -> Tensor:
    """Return the saturation of HSV, weighted by value, `[N]`, of pictures uint8 `[N, H, W, 3]`; 0 of a black one."""
    values = pictures.double() / 255.0
    value = values.amax(-1)
    chroma = value - values.amin(-1)
    return chroma.mean(dim=(1, 2)) / value.mean(dim=(1, 2)).clamp(min=1e-12)


def clipped(pictures: Tensor) -> Tensor:
    """Return the share of values at either end of their range, `[N]`, of pictures uint8 `[N, H, W, 3]`."""
    return ((pictures == 0) | (pictures == 255)).double().flatten(1).mean(1)


def octaves(pictures: Tensor) -> Tensor:
    """Return the energy of luma by octave of frequency, the finest first, `[N, 5]`, of pictures uint8 `[N, H, W, 3]`.

    A row sums to the variance of luma.
    """
    y = luma(pictures)
    height, width = y.shape[1:]
    power = _cosines(_cosines(y).mT).mT.square() / (height * width)
    down, across = (torch.arange(side, dtype=torch.float64, device=y.device) / (2 * side) for side in (height, width))
    frequency = torch.hypot(down[:, None], across[None, :])
    edges = [float("inf"), *(2.0 ** -(k + 1) for k in range(1, NUM_OCTAVES)), 0.0]
    inside = [(frequency > low) & (frequency <= high) for high, low in pairwise(edges)]
    return torch.stack([(power * band).sum(dim=(1, 2)) for band in inside], dim=1)


def _cosines(values: Tensor) -> Tensor:
    """Return the orthonormal DCT-II along the last axis, by an FFT as long as it (Makhoul 1980)."""
    num = values.shape[-1]
    turned = torch.fft.fft(torch.cat([values[..., ::2], values[..., 1::2].flip(-1)], dim=-1))
    steps = torch.arange(num, dtype=values.dtype, device=values.device)
    found: Tensor = (turned * torch.polar(torch.ones_like(steps), -math.pi * steps / (2 * num))).real
    found *= (2.0 / num) ** 0.5
    found[..., 0] *= 0.5**0.5
    return found


def luma(pictures: Tensor) -> Tensor:
    """Return Y, float64 `[N, H, W]` in [0, 1], of pictures uint8 `[N, H, W, 3]`. ValueError for another shape."""
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 [N, H, W, 3], got {pictures.dtype} {list(pictures.shape)}")
    weights = torch.tensor(LUMA, dtype=torch.float64, device=pictures.device)
    return pictures.double() / 255.0 @ weights


def spread(points: Tensor) -> Tensor:
    """Return the mean distance between two of the S points of a prompt, over all prompts, `[]`.

    points: `[P, S, D]`, of pictures or of their features. 0 where a prompt has one point.
    """
    num = points.shape[1]
    if num < 2:
        return points.new_zeros(())
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=(1, 2)).mean() / (num * (num - 1))


def energy_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return how far two sets of points of each prompt are apart, over all prompts, `[]`; 0 in expectation for equals.

    2 E|x - y| - E|x - x'| - E|y - y'|, each over pairs of two noises (Szekely & Rizzo 2013): the points of one noise
    are like each other in both sets, and would make them look nearer than they are. It may be below 0. first, second:
    `[P, S, D]`, S at least 2, the noises in one order.
    """
    num = first.shape[1]
    between = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    between = between.sum(dim=(1, 2)) - between.diagonal(dim1=1, dim2=2).sum(1)
    return 2.0 * between.mean() / (num * (num - 1)) - spread(first) - spread(second)
