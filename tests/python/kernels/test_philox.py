"""Random numbers by a counter: the published words, Triton's own Philox, and what normal numbers must be."""

from __future__ import annotations

import math

import pytest
import torch

from ddx.kernels import philox
from ddx.kernels.philox import normal, normal_reference, uniform, uniform_reference

KEYS = torch.tensor([0, 1, 2**62 + 12345, 2**63 - 1, 987654321987654321])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    # the vectors that Random123 publishes (kat_vectors), those whose last two counters are 0
    [(0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))],
)
def test_the_words_are_those_of_the_paper(counter: int, key: int, words: tuple[int, ...]) -> None:
    found = philox.philox(torch.tensor([key]), torch.tensor([counter]), 0)
    assert tuple(int(word) for word in found) == words


@pytest.mark.parametrize("count", [1, 3, 4, 5, 2051])
def test_the_kernel_draws_what_plain_torch_draws(triton_path: None, count: int) -> None:
    found, expected = normal(KEYS, 7, (count,)), normal_reference(KEYS, 7, count)
    # the words are equal to the bit; logarithm, sine and cosine may round in their last places
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(uniform(KEYS, 7), uniform_reference(KEYS, 7))


def test_a_row_draws_the_same_in_any_company_and_each_stream_others() -> None:
    together = normal(KEYS, 3, (2, 33))
    assert torch.equal(together[2:3], normal(KEYS[2:3], 3, (2, 33)))
    assert torch.equal(uniform(KEYS, 3)[1:2], uniform(KEYS[1:2], 3))
    assert not torch.equal(together, normal(KEYS, 4, (2, 33)))


def test_they_are_normal_and_independent() -> None:
    keys = torch.arange(64) * 7919
    first, second = normal_reference(keys, 1, 4096).double(), normal_reference(keys, 2, 4096).double()
    count = first.numel()
    bound = 5.0 / math.sqrt(count)  # five standard deviations of a mean of that many
    for moment, expected, spread in ((1, 0.0, 1.0), (2, 1.0, math.sqrt(2)), (3, 0.0, math.sqrt(15)), (4, 3.0, 9.8)):
        assert abs(float((first**moment).mean()) - expected) < bound * spread
    for other in (second, first.roll(1, 0), first.roll(1, 1), first.roll(1024, 1)):
        assert abs(float((first * other).mean())) < bound
    tail = float((first.abs() > 3.0).double().mean())
    assert abs(tail - 0.0027) < 5.0 * math.sqrt(0.0027 / count)
    u = uniform(torch.arange(40_000), 1)
    assert float(u.min()) >= 0.0 and float(u.max()) < 1.0
    assert abs(float(u.mean()) - 0.5) < 5.0 * math.sqrt(1 / 12 / len(u))
    bins = torch.histc(u.float(), 20, 0.0, 1.0)
    assert float(((bins - 2000) ** 2 / 2000).sum()) < 60.0  # chi square of 19: one in 4e-6 is above


def test_words_at_both_ends_give_finite_numbers() -> None:
    ends = torch.tensor([0, 2**32 - 1])
    for first in ends:
        for second in ends:
            assert all(torch.isfinite(n) for n in philox._box_muller(first, second))
