"""Analytic-DPM on the exact ground: its variance is the closed form's, and few steps come nearer to the mixture."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddx.bench.mixtures.mixture import Mixture, circle
from ddx.bench.mixtures.solving import PointVariances, drawn, energy_distance, points
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher
from ddx.teachers.samplers.analytic import Known, chain, clipped, step_weights
from ddx.teachers.samplers.measuring import time_key

NUM = 2000
WIDTH = 0.7
GAUSSIAN = Mixture(torch.tensor([[0.4, -0.3]], dtype=torch.float64), WIDTH, torch.zeros(1, dtype=torch.long))


def posterior_variance(mixture: Mixture, teacher: MixtureTeacher, t: Tensor, num: int = 200_000) -> float:
    """E tr Cov[x0 | x_t] / d by the formula of the mixture's posterior, over many states."""
    classes = torch.full((num,), mixture.num_classes)
    generator = torch.Generator().manual_seed(9)
    alpha, sigma = teacher.process.alpha(t), teacher.process.sigma(t)
    x0 = mixture.draw(classes, generator).double()
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    width = alpha**2 * mixture.std**2 + sigma**2
    apart = x[:, None] - alpha * mixture.means
    weight = torch.softmax(-apart.square().sum(-1) / (2 * width), 1)
    clean = mixture.means + alpha * mixture.std**2 / width * apart
    inside = x0.shape[1] * mixture.std**2 * sigma**2 / width
    second = (weight * clean.square().sum(-1)).sum(1) + inside
    return float((second - (weight[:, :, None] * clean).sum(1).square().sum(1)).mean()) / x0.shape[1]


@pytest.mark.parametrize("process", PROCESSES)
def test_the_variance_of_a_gaussian_s_step_is_that_of_its_chain(process: str) -> None:
    """x_n and x_{n-1} are jointly Gaussian, and a step draws from the one given the other: same mean and variance."""
    teacher = MixtureTeacher(GAUSSIAN, process)
    times = torch.linspace(0.95, 0.05, 7, dtype=torch.float64) * teacher.process.t_max
    a, b = chain(teacher.process, times)
    v = WIDTH**2 * b / (a * WIDTH**2 + b)  # of x0 given x_n, in the chain's units
    v = torch.where(a > 0, v, WIDTH**2)
    for n, after in pairwise(range(len(times))):
        of_x0, of_eps, variance = step_weights(a[n], b[n], a[after], b[after], v[n])
        before, later = a[after] * WIDTH**2 + b[after], a[n] * WIDTH**2 + b[n]
        assert float(variance) == pytest.approx(float(before - a[n] / a[after] * before**2 / later), rel=1e-9)
        slope = (a[n] / a[after]).sqrt() * before / later  # of x_{n-1}'s mean by x_n
        x0_slope = a[n].sqrt() * WIDTH**2 / later
        eps_slope = (1 - a[n].sqrt() * x0_slope) / b[n].sqrt()
        assert float(of_x0 * x0_slope + of_eps * eps_slope) == pytest.approx(float(slope), rel=1e-9)


@pytest.mark.parametrize("process", ["flow", "vp-eps", "vp-v"])
@pytest.mark.parametrize("mixture", [GAUSSIAN, circle()], ids=["gaussian", "circle"])
def test_what_is_measured_is_the_closed_form(process: str, mixture: Mixture) -> None:
    """Within five standard errors; and gamma says the same as the error where both can be read."""
    teacher, measured = MixtureTeacher(mixture, process), PointVariances(mixture)
    times = [share * teacher.process.t_max for share in (0.999, 0.8, 0.5, 0.2, 0.05)]
    known = measured.at(teacher, times)
    a, b = chain(teacher.process, torch.tensor(times, dtype=torch.float64))
    for t, error, a_n, b_n in zip(times, known.errors, a, b, strict=True):
        exact = posterior_variance(mixture, teacher, torch.tensor(t, dtype=torch.float64))
        assert error == pytest.approx(exact, rel=5 * math.sqrt(8.0 / measured.num)), t
        unknown = 1.0 - float(b_n) * measured.found["times"][time_key(t)]["gamma"]
        assert unknown == pytest.approx(exact * float(a_n / b_n), abs=5 * math.sqrt(2.0 / measured.num)), t
    exact = mixture.std**2 + float(mixture.means.var(0, correction=0).mean())
    assert known.variance == pytest.approx(exact, rel=0.05)


def test_bounds_hold_what_a_wrong_network_says() -> None:
    known = Known((0.0,), variance=0.5, half_range=2.0)
    a, b = torch.tensor([0.5, 0.5, 0.0, 0.99], dtype=torch.float64), torch.tensor([0.5, 0.5, 1.0, 0.01])
    found = clipped(torch.tensor([-0.1, 9.0, 9.0, 9.0], dtype=torch.float64), a, b.double(), known)
    assert found.tolist() == pytest.approx([0.0, 0.5, 0.5, 0.01 / 0.99])
    narrow = Known((0.0,), variance=0.5, half_range=0.1)
    assert float(clipped(torch.tensor([9.0]).double(), a[:1], b[:1].double(), narrow)) == pytest.approx(0.01)


@pytest.mark.parametrize("mixture", [GAUSSIAN, circle()], ids=["gaussian", "circle"])
def test_ten_steps_are_nearer_to_the_mixture_than_ddpm_s(mixture: Mixture) -> None:
    wanted, again = points(mixture, NUM, seed=3), points(mixture, NUM, seed=4)
    ddpm, ours = (energy_distance(drawn(mixture, "vp-eps", name, 10, NUM), wanted) for name in ("ddpm", "analytic-dpm"))
    assert energy_distance(again, wanted) < ours < 0.6 * ddpm


def test_flow_teachers_have_it_too() -> None:
    """Their first state holds no picture at all, where eps would say nothing."""
    found = drawn(GAUSSIAN, "flow", "analytic-dpm", 10, NUM)
    torch.testing.assert_close(found.mean(0), GAUSSIAN.means[0].float(), rtol=0, atol=5 * WIDTH / math.sqrt(NUM))
    torch.testing.assert_close(found.std(0), torch.full((2,), WIDTH), rtol=0.1, atol=0)
