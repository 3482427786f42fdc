"""The measure that counted peaks are compared with."""

from __future__ import annotations

import torch

from allocator import measured_peak, measured_peaks

MEGABYTES = 10**6


def test_blocks_that_an_earlier_profile_saw_lower_nothing_when_they_end() -> None:
    kept: list[torch.Tensor] = []
    assert measured_peak(lambda: kept.append(torch.zeros(MEGABYTES))) == 4 * MEGABYTES

    def end_it_and_take_twice_as_much() -> None:
        kept.clear()
        torch.zeros(2 * MEGABYTES)

    assert measured_peak(end_it_and_take_twice_as_much) == 8 * MEGABYTES


def test_what_a_call_leaves_counts_in_the_next_until_it_ends() -> None:
    kept: list[torch.Tensor] = []

    def take_twice_as_much_and_end_it() -> None:
        torch.zeros(2 * MEGABYTES)
        kept.clear()

    peaks = measured_peaks(
        lambda: kept.append(torch.zeros(MEGABYTES)), take_twice_as_much_and_end_it, lambda: torch.zeros(2 * MEGABYTES)
    )
    assert peaks == [4 * MEGABYTES, 12 * MEGABYTES, 8 * MEGABYTES]
