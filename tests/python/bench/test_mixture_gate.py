from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ddx.bench.mixtures.gate import Modes, gate
from ddx.bench.mixtures.mixture import Mixture, circle, scattered
from ddx.bench.mixtures.run import ode_modes
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher
from ddx.methods.parts.flow_view import FLOW, FlowView

NUM = 10_000
MIXTURE = circle()
MODES = Modes.of(MIXTURE)


BOTH = pytest.mark.parametrize("mixture", [MIXTURE, scattered()], ids=["plane", "16-D"])


def sample(mixture: Mixture = MIXTURE) -> torch.Tensor:
    every = torch.full((NUM,), mixture.num_classes)
    return mixture.draw(every, torch.Generator().manual_seed(3)).double()


def centres(points: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    return mixture.means[torch.cdist(points, mixture.means).argmin(1)]


@BOTH
def test_the_mixture_itself_passes_the_gate(mixture: Mixture) -> None:
    assert gate(sample(mixture), Modes.of(mixture)).passed


@pytest.mark.parametrize("process", ["flow", "edm"])  # their states are of the least size and of the largest
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


@BOTH
def test_blurred_modes_fail(mixture: Mixture) -> None:
    points = sample(mixture)
    centre = centres(points, mixture)
    assert not gate(centre + 3 * (points - centre), Modes.of(mixture)).passed


@BOTH
def test_modes_without_width_fail(mixture: Mixture) -> None:
    assert not gate(centres(sample(mixture), mixture), Modes.of(mixture)).passed


@BOTH
def test_mass_on_the_bridges_fails(mixture: Mixture) -> None:
    points, generator = sample(mixture), torch.Generator().manual_seed(5)
    some = NUM // 5
    mode = torch.arange(some) % 8
    middle = (mixture.means[mode] + mixture.means[(mode + 1) % 8]) / 2
    points[:some] = middle + mixture.std / 2 * torch.randn(points[:some].shape, generator=generator)
    found = gate(points, Modes.of(mixture))
    assert not found.passed and found.worst_std > 0.2


def test_in_sixteen_dimensions_mass_spread_over_all_bridges_fails_by_the_widths_towards_other_modes() -> None:
    mixture, generator = scattered(), torch.Generator().manual_seed(7)
    points = sample(mixture)
    some = points[: NUM // 5]
    other = mixture.means[torch.randint(8, (len(some),), generator=generator)]
    some += torch.rand(len(some), 1, generator=generator) * (other - centres(some, mixture))
    found = gate(points, Modes.of(mixture))
    assert found.off_mode < 0.01 and found.worst_std > 0.1


@BOTH
def test_a_mode_that_is_drawn_too_often_fails(mixture: Mixture) -> None:
    points, generator = sample(mixture), torch.Generator().manual_seed(6)
    some = points[: NUM // 40]
    some[:] = mixture.means[0] + mixture.std / 2 * torch.randn(some.shape, generator=generator)
    assert not gate(points, Modes.of(mixture)).passed


def test_guided_modes_are_those_of_the_guided_ode_and_not_the_mixture_s() -> None:
    teacher = MixtureTeacher(circle(num_classes=2), guidance=2.0)
    found = ode_modes(teacher, num_samples=2 * NUM)
    again = ode_modes(teacher, num_samples=NUM, seed=6)
    assert float((found.means - again.means).abs().max()) < 0.03
    assert float((found.stds / again.stds - 1).abs().max()) < 0.05
    assert float((found.shares - 1 / 8).abs().max()) < 0.01  # all modes are alike
    assert float((found.means.norm(dim=1) - 1.5).min()) > 0.02  # away from the modes of the other class
    assert not gate(sample(), found).passed
