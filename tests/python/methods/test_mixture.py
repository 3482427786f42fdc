from __future__ import annotations

from itertools import pairwise

import torch

from mixtures import MEANS, NUM_MODES, STD, ExactVelocity, draw_data, gate

NUM = 10_000


def sample() -> torch.Tensor:
    return draw_data(NUM, torch.Generator().manual_seed(3))


def test_the_mixture_itself_passes_the_gate() -> None:
    assert gate(sample()).passed


def test_the_ode_of_the_exact_velocity_ends_in_the_mixture() -> None:
    x = torch.randn(NUM, 2, generator=torch.Generator().manual_seed(4))
    times = torch.linspace(1, 0, 201, dtype=torch.float64)
    for t, r in pairwise(times):
        x = x + float(r - t) * ExactVelocity()(x, t.expand(NUM))
    assert gate(x).passed


def test_blurred_modes_fail() -> None:
    centre = MEANS[torch.cdist(sample(), MEANS).argmin(1)]
    assert not gate(centre + 3 * (sample() - centre)).passed


def test_modes_without_width_fail() -> None:
    assert not gate(MEANS[torch.cdist(sample(), MEANS).argmin(1)]).passed


def test_mass_on_the_bridges_fails() -> None:
    points = sample()
    mode = torch.arange(NUM // 5) % NUM_MODES
    middle = (MEANS[mode] + MEANS[(mode + 1) % NUM_MODES]) / 2
    points[: NUM // 5] = middle + STD * torch.randn(NUM // 5, 2, generator=torch.Generator().manual_seed(5))
    assert gate(points).off_mode > 0.1


def test_a_mode_that_is_drawn_too_often_fails() -> None:
    points = sample()
    points[: NUM // 40] = MEANS[0] + STD * torch.randn(NUM // 40, 2, generator=torch.Generator().manual_seed(6))
    assert not gate(points).passed
