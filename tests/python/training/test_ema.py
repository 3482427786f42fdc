from __future__ import annotations

import pytest
import torch
from torch import nn

from ddx.errors import UsageError
from ddx.training.ema import EMA


def walk(average: EMA, layer: nn.Linear, values: list[float], batch_size: int = 4) -> float:
    for value in values:
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update(batch_size)
    return float(average.parameters()["weight"])


def make() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def test_a_constant_decay() -> None:
    layer = make()
    assert walk(EMA.named(layer, "decay:0.9"), layer, [1.0, 1.0]) == pytest.approx(1 - 0.9**2)


def test_a_half_life_counts_images() -> None:
    layer = make()
    # 8 images a step, half-life 16: after two steps half of the start is left
    assert walk(EMA.named(layer, "half-life:16"), layer, [1.0, 1.0], batch_size=8) == pytest.approx(0.5)


def test_a_power_profile_weighs_steps_by_their_power() -> None:
    layer, power = make(), 3.0
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    found = walk(EMA.named(layer, f"power:{power:g}"), layer, values)
    # Karras et al. 2024: the weight of step n is n**power, here for steps that are not yet few
    n = torch.arange(1, 201, dtype=torch.float64)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), n]) ** (power + 1)
    weights = edges.diff() / edges[-1]
    assert found == pytest.approx(float((weights * torch.tensor(values, dtype=torch.float64)).sum()), abs=1e-5)


def test_a_snapshot_moves_only_when_it_is_renewed() -> None:
    layer = make()
    average = EMA(layer, decay=1.0)
    assert walk(average, layer, [1.0, 2.0]) == 0.0
    average.renew()
    assert float(average.parameters()["weight"]) == 2.0


def noisy(module: nn.Module, steps: range, *averages: EMA) -> None:
    """Walk a network at random around 1, and its averages with it."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in module.parameters():
            parameter.data = 1.0 + 0.01 * torch.randn(parameter.shape, generator=generator)
        for average in averages:
            average.update()


def test_an_average_in_bfloat16_follows_and_does_not_stand_still() -> None:
    layer = nn.Linear(64, 64)
    nn.init.constant_(layer.weight, 0.5)
    exact, rounded = (EMA(layer, decay=0.999, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    nearest = exact.parameters()["weight"].bfloat16()
    steps = 1500
    for start in range(0, steps, 500):
        noisy(layer, range(start, start + 500), exact, rounded)
    for step in range(steps):
        noisy(layer, range(step, step + 1))
        nearest.lerp_(layer.weight.detach().bfloat16(), 0.001)
    expected, found = exact.parameters()["weight"], rounded.parameters()["weight"]
    assert found.dtype == torch.bfloat16 and 0.85 < float(expected.mean()) < 0.95
    assert torch.equal(nearest, torch.full_like(nearest, 0.5))  # what rounding to the nearest would have done
    last = 2.0**-8  # a unit in the last place, from 0.5 to 1
    error = found.float() - expected
    # the variance of a rounding is at most last * step, and its weight falls by 0.999**2 an update
    assert float(error.std()) < (last * 0.001 * 0.5 / (1.0 - 0.999**2)) ** 0.5
    assert abs(float(error.mean())) < 5.0 * float(error.std()) / error.numel() ** 0.5


def test_an_average_in_bfloat16_goes_on_exactly_from_its_state() -> None:
    layer, other = nn.Linear(8, 8), nn.Linear(8, 8)
    first, second = (EMA(module, decay=0.9, dtype=torch.bfloat16, seed=3) for module in (layer, other))
    noisy(layer, range(5), first)
    second.load_state_dict({"num_images": 5, "shadow": {n: v.clone() for n, v in first.parameters().items()}})
    torch.rand(7)  # anyone else who draws
    noisy(layer, range(5, 9), first)
    noisy(other, range(5, 9), second)
    assert all(torch.equal(value, second.parameters()[name]) for name, value in first.parameters().items())


@pytest.mark.parametrize("name", ["decay", "decay:1", "halflife:3", "power:x", "half-life:-1"])
def test_what_names_no_average_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as error:
        EMA.named(make(), name)
    assert error.value.hint is not None and "decay:0.999" in error.value.hint
