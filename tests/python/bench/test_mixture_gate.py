from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ddx.bench.mixtures.gate import Modes, gate
from ddx.bench.mixtures.mixture import Mixture, circle, scattered
from ddx.bench.mixtures.run import wanted_modes
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher
from ddx.methods.flow_view import FLOW, FlowView

NUM = 10_000
MIXTURE = circle()
MODES = Modes.of(MIXTURE)


def sample() -> torch.Tensor:
    return MIXTURE.draw(torch.full((NUM,), MIXTURE.num_classes), torch.Generator().manual_seed(3))


def modes(points: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points.double(), MIXTURE.means).argmin(1)


@pytest.mark.parametrize("mixture", [circle(), scattered()], ids=["plane", "16-D"])
def test_the_mixture_itself_passes_the_gate(mixture: Mixture) -> None:
    points = mixture.draw(torch.full((NUM,), 1), torch.Generator().manual_seed(3))
    assert gate(points, Modes.of(mixture)).passed


@pytest.mark.parametrize("process", PROCESSES)
def test_the_ode_of_the_exact_velocity_ends_in_the_mixture(process: str) -> None:
    teacher = MixtureTeacher(MIXTURE, process)
    view, condition = FlowView(teacher), teacher.null_condition().expand(NUM)
    x = view.start(torch.randn(NUM, 2, 1, 1, generator=torch.Generator().manual_seed(4)), view.t_max)
    times = torch.linspace(view.t_max, 0, 201, dtype=torch.float64)
    for t, r in pairwise(times):
        x = x + float(r - t) * view.velocity(teacher.network(), x, t.expand(NUM), condition)
    assert gate(x.flatten(1), MODES).passed


@pytest.mark.parametrize("process", PROCESSES)
def test_eight_steps_of_the_solver_end_in_the_mixture_too(process: str) -> None:
    teacher = MixtureTeacher(MIXTURE, process)
    view, condition = FlowView(teacher), teacher.null_condition().expand(NUM)
    start = view.start(torch.randn(NUM, 2, 1, 1, generator=torch.Generator().manual_seed(4)), view.t_max)
    end = view.ode_end(lambda x, t: view.velocity(teacher.network(), x, t, condition), start, 8)
    assert gate(end.flatten(1), MODES).passed
    if process.startswith("vp"):
        timesteps = view.process.time_at(FLOW.angle(view.solver_times(8)[:-1]))
        torch.testing.assert_close(timesteps, timesteps.round(), rtol=0.0, atol=1e-6)


def test_blurred_modes_fail() -> None:
    points = sample().double()
    centre = MIXTURE.means[modes(points)]
    assert not gate(centre + 3 * (points - centre), MODES).passed


def test_modes_without_width_fail() -> None:
    assert not gate(MIXTURE.means[modes(sample())], MODES).passed


def test_mass_on_the_bridges_fails() -> None:
    points = sample().double()
    mode = torch.arange(NUM // 5) % 8
    middle = (MIXTURE.means[mode] + MIXTURE.means[(mode + 1) % 8]) / 2
    points[: NUM // 5] = middle + 0.1 * torch.randn(NUM // 5, 2, generator=torch.Generator().manual_seed(5))
    found = gate(points, MODES)
    assert not found.passed and found.worst_std > 0.2


def test_a_mode_that_is_drawn_too_often_fails() -> None:
    points = sample().double()
    points[: NUM // 40] = MIXTURE.means[0] + 0.1 * torch.randn(NUM // 40, 2, generator=torch.Generator().manual_seed(6))
    assert not gate(points, MODES).passed


def test_guided_modes_are_those_of_the_guided_ode_and_not_the_mixture_s() -> None:
    teacher = MixtureTeacher(circle(num_classes=2), guidance=2.0)
    found = wanted_modes(teacher)
    again = wanted_modes(teacher, num_samples=NUM, seed=6)
    assert float((found.means - again.means).abs().max()) < 0.03
    assert float((found.stds / again.stds - 1).abs().max()) < 0.05
    assert float((found.shares - 1 / 8).abs().max()) < 0.01  # all modes are alike
    assert float((found.means.norm(dim=1) - 1.5).min()) > 0.02  # away from the modes of the other class
    assert not gate(sample(), found).passed
