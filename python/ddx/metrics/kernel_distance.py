"""Maximum mean discrepancies: KID (Bińkowski et al. 2018, arXiv:1801.01401) and CMMD (Jayasumana et al. 2024)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddx.metrics.bootstrap import RESAMPLES, Estimate, resample_weights, standard_error

Array = NDArray[np.float64]

SUBSETS, SUBSET_SIZE = 100, 1000
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
ROWS = 1024  # of a kernel matrix at a time


def kid(
    reference: NDArray[np.floating],
    drawn: NDArray[np.floating],
    *,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = 0,
) -> Estimate:
    """Return the mean over subsets of the unbiased MMD² with the kernel (x·y/D + 1)³; its error is their deviation.

    Features `[N, D]` and `[M, D]`. A subset takes `size` rows of each without replacement, or all of the smaller set.
    The value may be negative: its expectation is 0 where the distributions are equal.
    """
    size = min(size, len(reference), len(drawn))
    rng = np.random.default_rng(seed)
    found = [
        polynomial_mmd(rng.choice(reference, size, replace=False), rng.choice(drawn, size, replace=False))
        for _ in range(subsets)
    ]
    return Estimate(value=float(np.mean(found)), error=float(np.std(found)))


def polynomial_mmd(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the unbiased MMD² of rows `[n, D]` and `[m, D]`: pairs of a row with itself are left out."""
    x: Array = np.asarray(first, np.float64)
    y: Array = np.asarray(second, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("an unbiased discrepancy needs at least two rows of each")

    def kernel(a: Array, b: Array) -> Array:
        found: Array = (a @ b.T / a.shape[1] + 1.0) ** 3
        return found

    def without_diagonal(rows: Array) -> float:
        values = kernel(rows, rows)
        return float((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))

    return without_diagonal(x) + without_diagonal(y) - 2.0 * float(kernel(x, y).mean())


def cmmd(reference: NDArray[np.floating], drawn: NDArray[np.floating], resamples: int = RESAMPLES) -> Estimate:
    """Return 1000 MMD² with the kernel exp(-|x - y|² / (2·10²)) of unit features `[N, D]` and `[M, D]`.

    The biased V-statistic, pairs of a row with itself among them, as the paper's own code computes it
    (arXiv:2401.09603). Features are normalised here. The error is over resamples of `drawn`.
    """
    first, second = _unit(reference), _unit(drawn)
    weights = np.concatenate([np.full((1, len(second)), 1.0 / len(second)), resample_weights(len(second), resamples)])
    within_reference = _weighted(first, first, np.full((1, len(first)), 1.0 / len(first)))[0]
    within_drawn = _weighted(second, second, weights)
    between = np.concatenate([_gaussian(second[i : i + ROWS], first).mean(axis=1) for i in range(0, len(second), ROWS)])
    values = CMMD_SCALE * (within_reference + within_drawn - 2.0 * weights @ between)
    return Estimate(value=float(values[0]), error=standard_error(values[1:]))


def _weighted(first: Array, second: Array, weights: Array) -> Array:
    """Return w K wᵀ for each row w of weights `[R, N]`, without all of K in memory."""
    found = np.zeros(len(weights))
    for start in range(0, len(first), ROWS):
        rows = slice(start, start + ROWS)
        found += np.einsum("rn,nr->r", weights[:, rows], _gaussian(first[rows], second) @ weights.T)
    return found


def _gaussian(first: Array, second: Array) -> Array:
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2.0 * first @ second.T
    found: Array = np.exp(-np.clip(squares, 0.0, None) / (2.0 * CMMD_SIGMA**2))
    return found


def _unit(features: NDArray[np.floating]) -> Array:
    features = np.asarray(features, np.float64)
    unit: Array = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit
