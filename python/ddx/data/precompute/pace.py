"""How fast a precompute is, and which of its stages holds up the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Item = TypeVar("Item")
# An encoder that waits for less than this share of the time is itself what the others wait for.
LITTLE_WAITING = 0.1


class Pace:
    """Shares of the time since the last look; `stats` are the counters of an ingest."""

    def __init__(self, stats: Callable[[], Mapping[str, int]]) -> None:
        self._stats = stats
        self._began = self._looked = time.monotonic()
        self._waited = 0.0

    def wait_for(self, step: Callable[[], Item]) -> Item:
        """Do a step in which the encoders have nothing to do."""
        began = time.monotonic()
        item = step()
        self._waited += time.monotonic() - began
        return item

    def look(self) -> dict[str, float | int | str]:
        """Encoded MB a second since the start; since the last look the encoders' busy share and the bottleneck."""
        now, stats = time.monotonic(), self._stats()
        waiting = self._waited / max(now - self._looked, 1e-9)
        megabytes = stats["bytes"] / 1e6 / max(now - self._began, 1e-9)
        self._looked, self._waited = now, 0.0
        return {
            "MB/s": round(megabytes, 2),
            "encoders busy": f"{1 - waiting:.0%}",
            "slowest": slowest(waiting, stats),
        }


def slowest(waiting: float, stats: Mapping[str, int]) -> str:
    """The stage that holds up the rest, from the share of time that the encoders wait and what waits where."""
    if waiting < LITTLE_WAITING:
        return "encode"
    if stats["queued"]:
        return "decode"
    return "fetch" if stats["fetching"] else "read"
