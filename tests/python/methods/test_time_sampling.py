from __future__ import annotations

import math

import pytest
import torch

from ddx.errors import UsageError
from ddx.methods.parts.config import TimeConfig
from ddx.methods.parts.time_sampling import AdaptiveTimes, sample_times

U = torch.arange(0.0005, 1.0, 0.001, dtype=torch.float64)


def draw(**settings: object) -> torch.Tensor:
    return sample_times(U, TimeConfig(**settings), t_min=0.0, t_max=1.0)  # type: ignore[arg-type]


def test_logit_normal_times_are_log_normal_noise_levels() -> None:
    found = draw(time_sampling="log-normal", time_mean=-1.2, time_std=1.2)
    logs = torch.log(found / (1 - found))  # sigma / alpha is t / (1 - t)
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-6) and float(logs.std()) == pytest.approx(1.2, rel=5e-3)
    assert torch.equal(found, draw(time_sampling="logit-normal", time_mean=-1.2, time_std=1.2))


def test_a_shift_multiplies_the_noise_ratio() -> None:
    plain, shifted = draw(), draw(time_sampling="shifted", time_shift=3.0)
    torch.testing.assert_close(shifted / (1 - shifted), 3.0 * plain / (1 - plain))


def test_grids_and_sets_have_equal_shares() -> None:
    values, counts = draw(time_sampling="grid", time_levels=4).unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0] and set(counts.tolist()) == {250}
    values, counts = draw(time_sampling="set", time_set=(1.0, 0.5)).unique(return_counts=True)
    assert values.tolist() == [0.5, 1.0] and set(counts.tolist()) == {500}


@pytest.mark.parametrize("settings", [{"time_std": 0.0}, {"time_levels": 0}, {"time_set": (0.0,)}, {"time_set": ()}])
def test_senseless_settings_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        TimeConfig(**settings)  # type: ignore[arg-type]


def uneven(quantile: torch.Tensor) -> torch.Tensor:
    return torch.exp(-4.0 * quantile).float()


def taught() -> AdaptiveTimes:
    times = AdaptiveTimes(num_bins=16)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        quantile, _ = times.draw(torch.rand(256, generator=generator, dtype=torch.float64))
        times.note(quantile, uneven(quantile))
        times.end_step(lambda value: value)
    return times


def test_adaptive_times_prefer_large_losses_and_leave_the_mean_as_it_is() -> None:
    times = taught()
    quantile, weight = times.draw(U)
    assert float(quantile.mean()) < 0.35  # evenly it would be 0.5
    exact = (1 - math.exp(-4.0)) / 4.0
    weighted = uneven(quantile) * weight
    assert float(weighted.mean()) == pytest.approx(exact, rel=1e-2)
    assert float(weighted.std()) < 0.35 * float(uneven(U).std())  # what it is for
    assert float(times.density().mean()) == pytest.approx(1.0)
    assert float(times.density().min()) >= 0.2


def test_adaptive_times_start_even_and_leave_out_what_is_not_finite() -> None:
    times = AdaptiveTimes(num_bins=4)
    quantile, weight = times.draw(U)
    assert torch.allclose(quantile, U) and bool((weight == 1.0).all())
    times.note(torch.tensor([0.1, 0.4, 0.6, 0.9, 0.9]).double(), torch.tensor([1.0, 1.0, 1.0, 3.0, float("nan")]))
    times.end_step(lambda value: value)
    expected = 0.2 + 0.8 * torch.tensor([1.0, 1.0, 1.0, 3.0]).double() / 1.5
    torch.testing.assert_close(times.density(), expected)


def test_what_was_learned_is_all_in_the_state() -> None:
    times, again = taught(), AdaptiveTimes(num_bins=16)
    again.sums.copy_(times.sums)
    assert torch.equal(again.draw(U)[0], times.draw(U)[0])
