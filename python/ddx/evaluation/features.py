"""The fixed feature space: edges by scale, edge directions, colours, and what colour is where.

Four groups of measurements, each scaled by a constant so that all weigh about the same on natural variation, then one
frozen random projection to 64 dimensions (Johnson & Lindenstrauss 1984). Nothing is trained or downloaded, so the
space never changes; blur, noise, missing colours, missing shapes and missing layouts all show in it (a test holds
it). Distances are comparable with each other and with nothing else.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

VERSION = "ddx-edges-colours-1"
SIDE = 64
NUM_FEATURES = 64
SEED = 20260101
ROWS = 64

SCALES = 4
ORIENTATIONS = 8
HUES = 12
GREYS = 8
THUMBNAIL = 4
FLOOR = 0.03  # of pixels in [-1, 1]: gradients under four grey levels are hardly seen, and count little

# One over the spread of each group on generated scenes; constants, so that the space depends on no data.
WEIGHTS = {"energy": 0.4, "orientation": 5.9, "colour": 1.5, "thumbnail": 0.38}


def extract(images: NDArray[np.uint8]) -> Array:
    """Return features float64 `[N, 64]` of pictures uint8 `[N, H, W, 3]`; a row depends on its own picture alone."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 [N, H, W, 3], got {images.dtype} {images.shape}")
    rows = []
    for start in range(0, len(images), ROWS):
        groups = measure(images[start : start + ROWS])
        rows.append(np.concatenate([groups[name] * weight for name, weight in WEIGHTS.items()], axis=1))
    measured = np.concatenate(rows)
    features: Array = measured @ _projection(measured.shape[1])
    return features


def measure(images: NDArray[np.uint8]) -> dict[str, Array]:
    """Return the four groups `[N, …]`, before weights and projection, by name."""
    pixels = _small(images).astype(np.float64) / 127.5 - 1.0  # [N, 64, 64, 3]
    red, green, blue = np.moveaxis(pixels, -1, 0)
    opponent = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=-1)
    return {
        "energy": _energies(opponent),
        "orientation": _orientations(opponent),
        "colour": _colours(pixels),
        "thumbnail": _pool(pixels, SIDE // THUMBNAIL).reshape(len(pixels), -1),
    }


def _energies(opponent: Array) -> Array:
    """Log of the mean gradient and its peakedness (a few sharp edges, or noise everywhere), by scale and channel."""
    found, x = [], opponent
    for scale in range(SCALES):
        dx, dy = np.diff(x, axis=2)[:, 1:], np.diff(x, axis=1)[:, :, 1:]
        size = np.hypot(dx, dy)  # [N, h, w, 3]
        mean, square = size.mean(axis=(1, 2)), (size**2).mean(axis=(1, 2))
        found += [np.log(mean + FLOOR), np.log((np.sqrt(square) + FLOOR) / (mean + FLOOR))]
        if scale < SCALES - 1:
            x = _pool(x, 2)
    return np.concatenate(found, axis=1)


def _orientations(opponent: Array) -> Array:
    """Histogram of edge directions modulo 180 degrees, weighted by the edges' size, at two scales."""
    found = []
    for x in (opponent, _pool(opponent, 2)):
        dx = (x[:, 1:-1, 2:] - x[:, 1:-1, :-2]).reshape(len(x), -1)
        dy = (x[:, 2:, 1:-1] - x[:, :-2, 1:-1]).reshape(len(x), -1)
        size = np.hypot(dx, dy)
        place = (np.arctan2(dy, dx) / np.pi % 1.0) * ORIENTATIONS
        histogram = _soft_histogram(place, size, ORIENTATIONS, circular=True)
        found.append(histogram / (size.sum(axis=1, keepdims=True) + FLOOR * size.shape[1]))
    return np.concatenate(found, axis=1)


def _colours(pixels: Array) -> Array:
    """Square roots (Hellinger) of a hue histogram weighted by saturation, and of a brightness histogram."""
    flat = ((pixels + 1.0) / 2.0).reshape(len(pixels), -1, 3)
    high, low = flat.max(axis=-1), flat.min(axis=-1)
    chroma = high - low
    red, green, blue = np.moveaxis(flat, -1, 0)
    hue = np.arctan2(np.sqrt(3.0) * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1.0
    hues = _soft_histogram(hue * HUES, chroma, HUES, circular=True)
    greys = _soft_histogram(flat.mean(axis=-1) * (GREYS - 1), np.ones_like(chroma), GREYS, circular=False)
    count = flat.shape[1]
    return np.concatenate([np.sqrt(hues / count), np.sqrt(greys / count)], axis=1)


def _soft_histogram(place: Array, weight: Array, bins: int, *, circular: bool) -> Array:
    """Histogram `[N, bins]` of places `[N, P]` in bins' widths; each entry is shared by its two nearest bins."""
    left = np.floor(place).astype(np.int64)
    share = place - left
    found = np.zeros(len(place) * bins)
    row = np.arange(len(place))[:, None] * bins
    for index, part in ((left, 1.0 - share), (left + 1, share)):
        inside = index % bins if circular else np.clip(index, 0, bins - 1)
        found += np.bincount((row + inside).ravel(), (weight * part).ravel(), minlength=len(found))
    return found.reshape(len(place), bins)


def _pool(x: Array, factor: int) -> Array:
    """Means over squares of `factor` pixels a side."""
    num, height, width, channels = x.shape
    pooled: Array = x.reshape(num, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
    return pooled


def _small(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.shape[1:3] == (SIDE, SIDE):
        return images
    from PIL import Image

    small = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in small])


@cache
def _projection(size: int) -> Array:
    rng = np.random.Generator(np.random.PCG64(SEED))
    projection: Array = rng.standard_normal((size, NUM_FEATURES)) / np.sqrt(NUM_FEATURES)
    return projection
