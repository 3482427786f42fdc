"""What torch's allocator on the processor hands out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function


def measured_peak(run_it: Callable[[], Any]) -> int:
    """Return the largest sum of bytes that was handed out during a call."""
    return measured_peaks(run_it)[0]


def measured_peaks(*calls: Callable[[], Any]) -> list[int]:
    """Return the largest sum of bytes during each of some calls; what is alive from the calls before counts.

    Blocks from before all calls do not count, and neither does their end: the profiler reports the end of blocks
    that an earlier profile saw, so that a trainer of an earlier test that is collected late would lower the sum.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for run_it in calls:
            with record_function(_CALL):
                run_it()
    alive, now, peaks = set[int](), 0, list[int]()
    events = _all(recorded.profiler.kineto_results.experimental_event_tree())
    for event in sorted(events, key=lambda event: event.start_time_ns):
        if event.name == _CALL:
            peaks.append(now)
        elif event.tag == _EventType.Allocation:
            block = event.extra_fields
            if block.alloc_size > 0:
                alive.add(block.ptr)
            elif block.ptr in alive:
                alive.remove(block.ptr)
            else:
                continue
            now += block.alloc_size
            peaks[-1] = max(peaks[-1], now)
    return peaks


def _all(events: Iterable[Any]) -> Iterator[Any]:
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        yield event
        waiting.extend(event.children)


_CALL = "a call whose memory is measured"
