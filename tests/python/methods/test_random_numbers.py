from __future__ import annotations

import pytest
import torch

from ddx.methods.parts.random_numbers import RandomNumbers, mix
from ddx.methods.parts.time_sampling import grid_index, sample_positions


@pytest.mark.parametrize("by_counter", [False, True], ids=["generators", "counter"])
def test_rows_draw_the_same_in_any_company(by_counter: bool) -> None:
    together, alone = (RandomNumbers(3, 5, rows, by_counter=by_counter) for rows in (range(8), [6]))
    assert not torch.equal(together.uniform(), together.uniform())
    alone.uniform(), alone.uniform()
    assert torch.equal(together.uniform()[6:7], alone.uniform())
    assert torch.equal(together.normal(2, 3)[6:7], alone.normal(2, 3))


def test_seed_step_and_row_each_change_what_is_drawn() -> None:
    seen = {mix(*words) for words in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, -1, 0), (1, 1, 0), (0, 1, 1)]}
    assert len(seen) == 7 and all(0 <= seed < 2**63 for seed in seen)


def test_noise_of_many_rows_is_normal_and_uncorrelated_between_neighbours() -> None:
    noise = RandomNumbers(0, 0, range(2000)).normal(16)
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 0.03


def test_times_keep_to_the_grid_and_lean_where_they_should() -> None:
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    index = grid_index(u, 20)
    assert int(index.min()) == 1 and int(index.max()) == 20 and abs(float(index.double().mean()) - 10.5) < 0.01
    assert float(sample_positions(u, kind="shifted", shift=3.0).mean()) > 0.6
    logits = torch.logit(sample_positions(u[1:], kind="logit-normal", mean=0.5, std=1.5))
    assert abs(float(logits.mean()) - 0.5) < 0.01 and abs(float(logits.std()) - 1.5) < 0.02


def test_every_row_falls_to_one_part_at_the_shares_asked_for() -> None:
    parts = RandomNumbers(0, 5, range(4000)).pick(0.125, 0.25)
    assert torch.cat(parts).sort().values.tolist() == list(range(4000))
    for part, share in zip(parts, (0.125, 0.25, 0.625), strict=True):
        assert abs(len(part) / 4000 - share) < 0.03
    whole, rest = RandomNumbers(0, 5, range(8)).pick(1.0)
    assert len(whole) == 8 and len(rest) == 0
    alone = RandomNumbers(0, 5, [7]).pick(0.125, 0.25)  # whoever the neighbours are
    assert [len(part) for part in alone] == [int(7 in part.tolist()) for part in parts]
