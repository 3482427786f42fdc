"""Fréchet distance, precision and recall, diversity: what is known of them in closed form, and at the extremes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from ddx.metrics.diversity import prompt_variance
from ddx.metrics.frechet import frechet_distance, gaussian_distance
from ddx.metrics.precision_recall import precision_recall


def test_frechet_of_equal_sets_is_zero() -> None:
    points = np.random.default_rng(0).normal(size=(100, 8))
    assert frechet_distance(points, points) == pytest.approx(0.0, abs=1e-9)
    few = points[:5]  # a singular covariance
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)


def test_frechet_of_gaussians_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    mean1, mean2 = rng.normal(size=(2, 6))
    root1, root2 = rng.normal(size=(2, 6, 6))
    covariance1, covariance2 = root1 @ root1.T, root2 @ root2.T
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(
        covariance1 + covariance2 - 2 * np.real(linalg.sqrtm(covariance1 @ covariance2))
    )
    assert gaussian_distance(mean1, covariance1, mean2, covariance2) == pytest.approx(expected, rel=1e-6)
    assert gaussian_distance(mean2, covariance2, mean1, covariance1) == pytest.approx(expected, rel=1e-6)
    # One dimension, by hand: (m1 - m2)^2 + (s1 - s2)^2.
    one = [np.array([value]) for value in (1.0, 4.0, 3.0, 9.0)]
    assert gaussian_distance(one[0], one[1], one[2], one[3]) == pytest.approx(4.0 + 1.0)


def test_frechet_of_a_shift_is_its_square() -> None:
    points = np.random.default_rng(2).normal(size=(500, 4))
    assert frechet_distance(points, points + np.array([3.0, 0, 0, 0])) == pytest.approx(9.0, rel=1e-9)


def test_precision_and_recall_at_the_extremes() -> None:
    rng = np.random.default_rng(3)
    real = rng.normal(size=(200, 4))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100.0) == (0.0, 0.0)
    collapsed = real[:1] + 1e-3 * rng.normal(size=(200, 4))  # good pictures, always the same one
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1.0 and recall < 0.05
    scattered = 3.0 * rng.normal(size=(200, 4))  # everything real, and much that is not
    precision, recall = precision_recall(real, scattered)
    assert precision < 0.6 < recall


def test_precision_is_the_share_inside_the_balls() -> None:
    real = np.array([[0.0], [1.0], [2.0]])  # k = 1: balls of radius 1 around each
    drawn = np.array([[-1.0], [-1.5], [3.0], [2.5]])
    assert precision_recall(real, drawn, k=1) == (0.75, pytest.approx(1 / 3))  # of the drawn, 2.5 ± 0.5 covers 2
    with pytest.raises(ValueError, match="3 neighbours"):
        precision_recall(real, drawn, k=3)


def test_diversity_is_the_variance_within_a_prompt() -> None:
    rng = np.random.default_rng(4)
    within = rng.normal(size=(2, 5000, 3)) * np.array([1.0, 2.0, 0.0])
    centres = np.array([[[100.0, 0, 0]], [[0, -50.0, 0]]])  # prompts differ, and that does not count
    assert prompt_variance((within + centres).reshape(-1, 3), 5000) == pytest.approx(5.0, rel=0.05)
    assert prompt_variance(np.repeat(centres, 4, axis=1).reshape(-1, 3), 4) == 0.0
