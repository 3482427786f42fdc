"""How uncertain a metric is: its standard error over resamples of the pictures' features, none of which is drawn anew.

A resample repeats pictures, which biases distances upwards, so its spread is used and its centre is not: a band is the
value and 1.96 standard errors to each side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 200
SEED = 20_270
NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric's value, and its standard error: None where the pictures are too few to tell."""

    value: float
    error: float | None = None

    @property
    def low(self) -> float | None:
        """The lower end of the 95 % band."""
        return None if self.error is None else self.value - NORMAL_95 * self.error

    @property
    def high(self) -> float | None:
        """The upper end of the 95 % band."""
        return None if self.error is None else self.value + NORMAL_95 * self.error


def resample_rows(count: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.int64]:
    """Return row numbers int64 `[resamples, count]`, drawn with replacement: the same ones for the same count."""
    return np.random.default_rng([seed, count]).integers(0, count, (resamples, count))


def resample_weights(count: int, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """Return how often each row is in a resample over the count, float64 `[resamples, count]`; rows add up to 1."""
    weights = np.zeros((resamples, count))
    for weight, rows in zip(weights, resample_rows(count, resamples, seed), strict=True):
        weight[:] = np.bincount(rows, minlength=count) / count
    return weights


def standard_error(values: Array) -> float | None:
    """Return the standard deviation of a metric's values over resamples; None of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_estimate(values: Array, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean of one value a picture, float `[N]`, with its error over resamples."""
    values = np.asarray(values, np.float64)
    error = standard_error(resample_weights(len(values), resamples) @ values) if resamples and len(values) > 1 else None
    return Estimate(value=float(values.mean()), error=error)


def paired_difference(first: Array, second: Array, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean of `second - first`, values `[N]` of the same prompts and seeds; resamples keep the pairs."""
    return mean_estimate(np.asarray(second, np.float64) - np.asarray(first, np.float64), resamples)
