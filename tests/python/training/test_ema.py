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


@pytest.mark.parametrize("name", ["decay", "decay:1", "halflife:3", "power:x", "half-life:-1"])
def test_what_names_no_average_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as error:
        EMA.named(make(), name)
    assert error.value.hint is not None and "decay:0.999" in error.value.hint
