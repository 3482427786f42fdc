"""What torch's allocator on the processor hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def measured_peak(run_it: Callable[[], Any]) -> int:
    """Return the largest sum of bytes that was handed out during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run_it()
    now = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
