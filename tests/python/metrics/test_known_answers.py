"""What the metrics must say of Gaussians, dropped modes and few rows."""

from __future__ import annotations

import numpy as np
import pytest

from ddx.metrics.bootstrap import mean_estimate, paired_difference, resample_rows
from ddx.metrics.frechet import Gaussian, distance_to_rows, fit, frechet_distance, frechet_estimate, frechet_infinity
from ddx.metrics.inception_score import inception_score
from ddx.metrics.kernel_distance import cmmd, kid, polynomial_mmd
from ddx.metrics.precision_recall import ROWS, manifolds


def normal(seed: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.RandomState(seed).standard_normal(shape)


def test_the_distance_of_few_rows_is_that_of_the_full_matrices() -> None:
    reference, few = fit(normal(0, 90, 40)), normal(1, 12, 40) * 2.0 + 0.5
    covariance = np.cov(few, rowvar=False)
    full = frechet_distance(normal(0, 90, 40), few)
    assert distance_to_rows(reference, few) == pytest.approx(full, rel=1e-8)
    # and by the eigenvalues of the product, which are real and positive up to rounding
    values = np.linalg.eigvals(reference.covariance @ covariance)
    expected = ((reference.mean - few.mean(0)) ** 2).sum() + np.trace(reference.covariance + covariance)
    assert full == pytest.approx(expected - 2 * np.sqrt(np.clip(values.real, 0, None)).sum(), rel=1e-5)


def test_the_extrapolated_distance_has_lost_most_of_the_bias() -> None:
    truth = Gaussian(mean=np.zeros(32), covariance=np.eye(32))
    biased, extrapolated = [], []
    for seed in range(8):
        rows = normal(seed, 600, 32)
        biased.append(distance_to_rows(truth, rows))
        extrapolated.append(frechet_infinity(truth, rows))
    assert np.mean(biased) > 0.3  # of the same distribution
    assert abs(np.mean(extrapolated)) < 0.1 * np.mean(biased)
    shifted = frechet_infinity(truth, normal(0, 600, 32) + 0.5)
    assert shifted == pytest.approx(32 * 0.25, rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        frechet_infinity(truth, normal(0, 19, 32))


def test_the_error_of_a_distance_is_its_deviation_over_draws() -> None:
    truth = Gaussian(mean=np.full(4, 1.0), covariance=np.eye(4))
    drawn = [distance_to_rows(truth, normal(seed, 200, 4)) for seed in range(200)]
    error = frechet_estimate(truth, normal(0, 200, 4)).error
    assert error == pytest.approx(np.std(drawn), rel=0.25)


def test_kid_is_zero_in_expectation_and_may_be_negative() -> None:
    values = [polynomial_mmd(normal(2 * i, 60, 10), normal(2 * i + 1, 60, 10)) for i in range(200)]
    assert min(values) < 0.0 < max(values)
    assert abs(np.mean(values)) < 4.0 * np.std(values) / np.sqrt(len(values))
    apart = kid(normal(0, 150, 10), normal(1, 120, 10) + 1.0, subsets=20, size=100)
    assert apart.error is not None and apart.value > 10.0 * apart.error
    with pytest.raises(ValueError, match="two rows"):
        polynomial_mmd(normal(0, 1, 4), normal(1, 5, 4))


def test_kid_of_gaussians_is_the_integral_of_its_kernel() -> None:
    """In one dimension E (xy + 1)³ is a polynomial of moments: 1 + 3 m1 m2 + 3 q1 q2 + c1 c2."""
    rows = normal(0, 4000, 1), normal(1, 4000, 1) + 0.5

    def kernel_mean(first: tuple[float, ...], second: tuple[float, ...]) -> float:
        return 1 + 3 * first[0] * second[0] + 3 * first[1] * second[1] + first[2] * second[2]

    p, q = (0.0, 1.0, 0.0), (0.5, 1.25, 0.5**3 + 3 * 0.5)  # E x, E x², E x³
    expected = kernel_mean(p, p) + kernel_mean(q, q) - 2 * kernel_mean(p, q)
    assert polynomial_mmd(*rows) == pytest.approx(expected, rel=0.15)


def test_cmmd_is_the_v_statistic_of_unit_features() -> None:
    first, second = normal(0, 30, 6), normal(1, 20, 6) + 1.0
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]

    def mean(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(np.mean([[np.exp(-((x - y) ** 2).sum() / 200.0) for y in b] for x in a]))

    expected = 1000 * (mean(units[0], units[0]) + mean(units[1], units[1]) - 2 * mean(units[0], units[1]))
    found = cmmd(7.0 * first, second)
    assert found.value == pytest.approx(expected, rel=1e-9)
    rows = resample_rows(20)[:40]
    resampled = [cmmd(first, second[chosen], resamples=0).value for chosen in rows]
    assert found.error == pytest.approx(np.std(resampled), rel=0.4)
    assert cmmd(first, first, resamples=0).value == pytest.approx(0.0, abs=1e-9)


def test_a_dropped_mode_costs_recall_and_coverage_alone() -> None:
    centres = np.repeat(np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]]), 100, axis=0)
    reference, drawn = normal(0, 400, 2) + centres, normal(1, 400, 2) + np.roll(centres, 0, axis=0)
    whole = manifolds(reference, drawn, 3).estimates()
    dropped = manifolds(reference, drawn[:300], 3).estimates()
    assert dropped["recall"].value == pytest.approx(0.75 * whole["recall"].value, abs=0.02)
    assert dropped["coverage"].value == pytest.approx(0.75 * whole["coverage"].value, abs=0.03)
    assert dropped["precision"].value == pytest.approx(whole["precision"].value, abs=0.03)
    # of equal distributions coverage is 1 - C-like: (Naeem et al. 2020, equation 12) near 1 - 1/2^k
    assert manifolds(reference, drawn, 5).estimates()["coverage"].value == pytest.approx(1 - 1 / 2**5, abs=0.03)
    assert manifolds(reference, drawn, 5).estimates()["density"].value == pytest.approx(1.0, abs=0.1)


def test_the_blocks_do_not_show() -> None:
    rows = normal(0, ROWS + 30, 3)
    assert precision_of(rows, rows) == (1.0, 1.0)
    order = np.random.RandomState(1).permutation(len(rows))
    other = normal(2, ROWS + 70, 3) * 1.5
    assert precision_of(rows, other) == pytest.approx(precision_of(rows[order], other[::-1]))


def precision_of(reference: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
    found = manifolds(reference, drawn, 3).estimates(resamples=0)
    return found["precision"].value, found["recall"].value


def test_the_inception_score_at_its_ends() -> None:
    sure = np.eye(20)[np.arange(400) % 20] * 100.0
    assert inception_score(sure, splits=1).value == pytest.approx(20.0)  # every class, no doubt
    assert inception_score(np.zeros((400, 20))).value == pytest.approx(1.0)
    assert inception_score(sure[:1].repeat(30, axis=0)).value == pytest.approx(1.0)  # one class alone
    assert inception_score(sure[:4]).value > 0  # fewer pictures than parts


def test_pairs_take_what_both_share_out_of_the_error() -> None:
    shared, noise = 10.0 * normal(0, 300), 0.1 * normal(1, 300)
    both = shared, shared + noise + 0.05
    apart = paired_difference(*both)
    alone = mean_estimate(both[1]).error
    assert apart.error is not None and alone is not None and apart.error < alone / 50
    assert apart.value == pytest.approx(0.05, abs=3 * apart.error)
    assert apart.low is not None and apart.high is not None and apart.low < apart.value < apart.high
