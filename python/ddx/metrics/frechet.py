"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500).

    d² = |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)

Symmetric matrices only, in float64: covariances of fewer rows than dimensions, which are singular, need no care.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddx.metrics.bootstrap import RESAMPLES, Estimate, resample_rows, standard_error

Array = NDArray[np.float64]

NUM_SIZES = 15  # subset sizes of the line in 1/N, as in Chong & Forsyth 2020
SMALLEST_SHARE = 0.5  # of the pictures in the smallest subset: below it the line bends


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """mean `[D]` and covariance `[D, D]`, float64, of `count` rows; None where a file does not say how many."""

    mean: Array
    covariance: Array
    count: int | None = None

    @cached_property
    def root(self) -> Array:
        """The covariance's symmetric square root."""
        return _square_root(np.atleast_2d(self.covariance))

    @cached_property
    def trace(self) -> float:
        """The covariance's trace."""
        return float(np.trace(np.atleast_2d(self.covariance)))


def fit(features: NDArray[np.floating]) -> Gaussian:
    """Return the Gaussian of features `[N, D]`; ValueError for fewer than two rows."""
    rows: Array = np.asarray(features, np.float64)
    if len(rows) < 2:
        raise ValueError("a covariance needs at least two rows")
    return Gaussian(mean=rows.mean(axis=0), covariance=np.cov(rows, rowvar=False), count=len(rows))


def frechet_distance(first: Array, second: Array) -> float:
    """Return the squared Fréchet distance between features `[N, D]` and `[M, D]`; each set needs two rows."""
    return distance_of(fit(first), fit(second))


def gaussian_distance(mean1: Array, covariance1: Array, mean2: Array, covariance2: Array) -> float:
    """Return the squared Fréchet distance of two Gaussians, means `[D]` and covariances `[D, D]`."""
    return distance_of(Gaussian(mean=mean1, covariance=covariance1), Gaussian(mean=mean2, covariance=covariance2))


def distance_of(first: Gaussian, second: Gaussian) -> float:
    """Return the squared Fréchet distance; the root of `first` is kept, so let that be the one that is used again."""
    middle = first.root @ np.atleast_2d(second.covariance) @ first.root
    return _distance(first, second.mean, second.trace, np.linalg.eigvalsh((middle + middle.T) / 2))


def distance_to_rows(reference: Gaussian, features: NDArray[np.floating]) -> float:
    """Return the distance of features `[N, D]` to a Gaussian.

    Of fewer rows than dimensions the eigenvalues come from the matrix `[N, N]` that has the same ones.
    """
    rows: Array = np.asarray(features, np.float64)
    if len(rows) >= rows.shape[1]:
        return distance_of(reference, fit(rows))
    mean: Array = rows.mean(axis=0)
    centred = (rows - mean) / np.sqrt(len(rows) - 1)
    inner: Array = centred @ np.atleast_2d(reference.covariance) @ centred.T
    return _distance(reference, mean, float((centred**2).sum()), np.linalg.eigvalsh((inner + inner.T) / 2))


def frechet_estimate(reference: Gaussian, features: NDArray[np.floating], resamples: int = RESAMPLES) -> Estimate:
    """Return the distance of features `[N, D]` to the reference, with its error over resamples of the features."""
    features = np.asarray(features, np.float64)
    errors = [distance_to_rows(reference, features[rows]) for rows in resample_rows(len(features), resamples)]
    return Estimate(value=distance_to_rows(reference, features), error=standard_error(np.array(errors)))


def frechet_infinity(reference: Gaussian, features: NDArray[np.floating], seed: int = 0) -> float:
    """Return FID∞: the line in 1/N through the distances of random subsets, at 1/N = 0 (Chong & Forsyth 2020).

    The distance of N rows is biased by about a constant over N (arXiv:1911.07023). The reference's own bias stays.
    Raises ValueError for fewer than 20 rows.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 20:
        raise ValueError(f"{len(features)} rows are too few for a line through subsets")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(max(10, SMALLEST_SHARE * len(features)), len(features), NUM_SIZES).astype(int))
    found = [distance_to_rows(reference, features[rng.permutation(len(features))[:size]]) for size in sizes]
    _, at_zero = np.polyfit(1.0 / sizes, found, 1)
    return float(at_zero)


def _distance(first: Gaussian, mean: Array, trace: float, eigenvalues: NDArray[np.floating]) -> float:
    """Return the distance from the eigenvalues of C1^½ C2 C1^½, which rounding may make negative."""
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
    return max(float(((first.mean - mean) ** 2).sum() + first.trace + trace - 2.0 * trace_of_root), 0.0)


def _square_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Array = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
