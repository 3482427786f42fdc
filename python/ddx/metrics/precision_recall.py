"""Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020).

A set's manifold is the union of the balls around its points that reach to each point's k-th nearest neighbour in the
set. Precision: the share of drawn points inside the reference's manifold. Recall: the share of reference points inside
the drawn one's. Density: the number of reference balls that a drawn point lies in, over k. Coverage: the share of
reference balls with a drawn point inside (arXiv:2002.09797).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddx.metrics.bootstrap import RESAMPLES, Estimate, mean_estimate

Array = NDArray[np.float64]

ROWS = 1024  # of the matrix of distances at a time


@dataclass(frozen=True, kw_only=True)
class Manifolds:
    """One value a point: their means are the metrics."""

    inside_reference: Array  # [M] of the drawn points: 1 inside the reference's manifold
    inside_drawn: Array  # [N] of the reference's points: 1 inside the drawn manifold
    balls: Array  # [M] of the drawn points: reference balls around it, over k
    covered: Array  # [N] of the reference's points: 1 with a drawn point in its ball

    def estimates(self, resamples: int = RESAMPLES) -> dict[str, Estimate]:
        """Return the four metrics by name, each with its error over resamples of the points that it is a mean of."""
        values = {
            "precision": self.inside_reference,
            "recall": self.inside_drawn,
            "density": self.balls,
            "coverage": self.covered,
        }
        return {name: mean_estimate(value, resamples) for name, value in values.items()}


def manifolds(reference: NDArray[np.floating], drawn: NDArray[np.floating], k: int) -> Manifolds:
    """Compare features `[N, D]` and `[M, D]`. Raises ValueError when a set has no k neighbours."""
    real: Array = np.asarray(reference, np.float64)
    made: Array = np.asarray(drawn, np.float64)
    if min(len(real), len(made)) <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, not {len(real)} and {len(made)}")
    radii, drawn_radii = _radii(real, k), _radii(made, k)
    inside, balls = np.zeros(len(made)), np.zeros(len(made))
    inside_drawn, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, between in _distances(made, real):  # [b, N]
        in_ball = between <= radii[None, :]
        inside[rows] = in_ball.any(axis=1)
        balls[rows] = in_ball.sum(axis=1) / k
        covered |= in_ball.any(axis=0)
        inside_drawn |= (between <= drawn_radii[rows, None]).any(axis=0)
    return Manifolds(
        inside_reference=inside,
        inside_drawn=inside_drawn.astype(np.float64),
        balls=balls,
        covered=covered.astype(np.float64),
    )


def precision_recall(reference: Array, drawn: Array, k: int = 3) -> tuple[float, float]:
    """Return precision and recall of features `[N, D]` and `[M, D]`; ValueError when a set has no k neighbours."""
    found = manifolds(reference, drawn, k)
    return float(found.inside_reference.mean()), float(found.inside_drawn.mean())


def _radii(points: Array, k: int) -> Array:
    """The distance from each point to its k-th nearest other one."""
    radii = np.empty(len(points))
    for rows, distances in _distances(points, points):
        distances[np.arange(len(distances)), np.arange(len(points))[rows]] = 0.0  # rounding leaves some of it
        radii[rows] = np.partition(distances, k, axis=1)[:, k]
    return radii


def _distances(first: Array, second: Array) -> Iterator[tuple[slice, Array]]:
    """Yield distances `[b, M]`, some rows of the first set at a time."""
    squares = (second**2).sum(axis=1)
    for start in range(0, len(first), ROWS):
        rows = slice(start, start + ROWS)
        part = first[rows]
        found = (part**2).sum(axis=1)[:, None] + squares[None, :] - 2.0 * part @ second.T
        yield rows, np.sqrt(np.clip(found, 0.0, None))
