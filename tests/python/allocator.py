"""What torch's allocator on the processor hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function


def measured_peak(run_it: Callable[[], Any]) -> int:
    """Return the largest sum of bytes that was handed out during a call."""
    return measured_peaks(run_it)[0]


def measured_peaks(*calls: Callable[[], Any]) -> list[int]:
    """Return the largest sum of bytes during each of some calls; what is alive from the calls before counts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for run_it in calls:
            with record_function(_CALL):
                run_it()
    now, peaks = 0, list[int]()
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == _CALL:
            peaks.append(now)
        elif event.name() == "[memory]":
            now += event.nbytes()
            peaks[-1] = max(peaks[-1], now)
    return peaks


_CALL = "a call whose memory is measured"
