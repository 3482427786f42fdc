"""What the pictures, captions and latents of a store are like, from its fine rows, in counts of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddx.data.layout import Array
from ddx.data.rows import OK

if TYPE_CHECKING:
    from ddx.data.store import Store

COLUMNS = ("row", "status", "width", "height")
MAX_SIDE = 16_384
# Aspect ratios are counted by their logarithm: so many bins for a doubling, and doublings to either side of a square.
BINS_PER_DOUBLING = 8
DOUBLINGS = 2
NUM_SAMPLED = 1024
SEED = 0


@dataclass(frozen=True)
class PictureCounts:
    """How many pictures have which size, and a random sample of their rows.

    width, height: int64 `[MAX_SIDE + 1]`, pictures of n pixels, larger ones in the last; aspect: int64
    `[2 DOUBLINGS BINS_PER_DOUBLING + 1]`, by width / height, the square in the middle; sampled: int64 `[S]`, rising.
    """

    width: Array
    height: Array
    aspect: Array
    sampled: Array


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each latent channel, unscaled, over rows and pixels: float64 `[C]` each."""

    mean: Array
    std: Array


@dataclass(frozen=True)
class Bars:
    """A histogram to be drawn: bar i counts the values from `first + i step` up to the next; `open_end`: and above."""

    counts: list[int]
    first: int
    step: int
    open_end: bool


def count_pictures(tables: Iterable[pa.Table], num_sampled: int = NUM_SAMPLED) -> PictureCounts:
    """Count the upright source pictures of the fine rows of tables with COLUMNS, and draw rows, each as likely."""
    random = np.random.default_rng(SEED)
    width, height = np.zeros(MAX_SIDE + 1, np.int64), np.zeros(MAX_SIDE + 1, np.int64)
    reach = DOUBLINGS * BINS_PER_DOUBLING
    aspect = np.zeros(2 * reach + 1, np.int64)
    rows, lots = np.zeros(0, np.int64), np.zeros(0)
    for table in tables:
        fine = table.filter(pc.equal(table["status"], OK))
        row, wide, high = (fine[name].to_numpy() for name in ("row", "width", "height"))
        width += np.bincount(np.minimum(wide, MAX_SIDE), minlength=len(width))
        height += np.bincount(np.minimum(high, MAX_SIDE), minlength=len(height))
        place = np.rint(np.log2(wide / high) * BINS_PER_DOUBLING).astype(np.int64)
        aspect += np.bincount(np.clip(place, -reach, reach) + reach, minlength=len(aspect))
        rows, lots = np.concatenate([rows, row]), np.concatenate([lots, random.random(len(row))])
        kept = np.argsort(lots)[:num_sampled]
        rows, lots = rows[kept], lots[kept]
    return PictureCounts(width, height, aspect, np.sort(rows))


def latent_moments(store: Store, rows: Sequence[int] | Array) -> Moments:
    """Read the latents of these rows one by one. Raises ValueError for no rows."""
    import zarr

    if not len(rows):
        raise ValueError("moments need a row")
    group, buckets = zarr.open_group(str(store.path), mode="r"), store.buckets
    numbers = group["bucket"].oindex[np.asarray(rows)] if len(buckets) > 1 else np.zeros(len(rows), np.int64)
    latents = [group[bucket.array("latents")] for bucket in buckets]
    total, squares, count = np.zeros(store.latent_shape[0]), np.zeros(store.latent_shape[0]), 0
    for row, number in zip(rows, numbers, strict=True):
        values = np.asarray(latents[number][int(row)], np.float64).reshape(len(total), -1)
        total, squares, count = total + values.sum(1), squares + np.square(values).sum(1), count + values.shape[1]
    mean = total / count
    return Moments(mean, np.sqrt(np.maximum(squares / count - np.square(mean), 0)))


def quantile(counts: Array, share: float) -> int:
    """The smallest n such that at least this share of the values, of which `counts[n]` are n, is not above it."""
    return int(np.searchsorted(np.cumsum(counts), share * counts.sum()))


def bars(counts: Array, max_bars: int = 40) -> Bars:
    """Bars of one, two or five times a power of ten for values of which `counts[n]` are n; not all may be 0.

    The highest hundredth is left out of the range if it would stretch it by more than half; the last bar has it.
    """
    present = np.flatnonzero(counts)
    low, high, most = int(present[0]), int(present[-1]), quantile(counts, 0.99)
    open_end = high - low > 1.5 * (most - low) and most > low
    end = most if open_end else high
    step = max(1, round(nice_step(end - low + 1, max_bars)))
    first = low // step * step
    num_bars = (end - first) // step + 1
    place = np.minimum((present - first) // step, num_bars - 1)
    heights = np.bincount(place, weights=counts[present], minlength=num_bars).astype(np.int64)
    return Bars([int(height) for height in heights], first, step, open_end)


def nice_step(span: float, most: int) -> float:
    """The smallest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that cuts a span above 0 into at most `most` pieces."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * most >= span)
