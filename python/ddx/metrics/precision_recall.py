"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def precision_recall(reference: Array, drawn: Array, k: int = 3) -> tuple[float, float]:
    """Return the share of `drawn` inside the manifold of `reference`, and the reverse.

    Features `[N, D]` and `[M, D]`. A set's manifold is the union of the balls around its points that reach to each
    point's k-th nearest neighbour in the set. Raises ValueError when a set has no k neighbours.
    """
    if min(len(reference), len(drawn)) <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, not {len(reference)} and {len(drawn)}")
    between = _distances(drawn, reference)
    precision = (between <= _radii(reference, k)[None, :]).any(axis=1).mean()
    recall = (between <= _radii(drawn, k)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def _radii(points: Array, k: int) -> Array:
    """The distance from each point to its k-th nearest other one."""
    distances = _distances(points, points)
    np.fill_diagonal(distances, 0.0)
    radii: Array = np.partition(distances, k, axis=1)[:, k]
    return radii


def _distances(first: Array, second: Array) -> Array:
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2.0 * first @ second.T
    distances: Array = np.sqrt(np.clip(squares, 0.0, None))
    return distances
