"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def frechet_distance(first: Array, second: Array) -> float:
    """Return the squared Fréchet distance between features `[N, D]` and `[M, D]`; each set needs two rows."""
    if len(first) < 2 or len(second) < 2:
        raise ValueError("a covariance needs at least two rows")
    return gaussian_distance(
        first.mean(axis=0), np.cov(first, rowvar=False), second.mean(axis=0), np.cov(second, rowvar=False)
    )


def gaussian_distance(mean1: Array, covariance1: Array, mean2: Array, covariance2: Array) -> float:
    """Return `|m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)`.

    Written with symmetric matrices only, so that singular covariances (fewer rows than dimensions) need no care.
    """
    root = _square_root(np.atleast_2d(covariance1))
    middle = root @ np.atleast_2d(covariance2) @ root
    trace_of_root = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0.0, None)).sum()
    traces = np.trace(np.atleast_2d(covariance1)) + np.trace(np.atleast_2d(covariance2))
    return max(float(((mean1 - mean2) ** 2).sum() + traces - 2.0 * trace_of_root), 0.0)


def _square_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Array = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
