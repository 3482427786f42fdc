"""The display names the stage that holds up the others."""

from __future__ import annotations

import time

import pytest

from ddx.data.precompute.pace import Pace, slowest


@pytest.mark.parametrize(
    ("waiting", "queued", "fetching", "stage"),
    [(0.05, 9, 9, "encode"), (0.9, 3, 9, "decode"), (0.9, 0, 9, "fetch"), (0.9, 0, 0, "read")],
)
def test_the_slowest_stage(waiting: float, queued: int, fetching: int, stage: str) -> None:
    assert slowest(waiting, {"queued": queued, "fetching": fetching}) == stage


def test_shares_are_those_since_the_last_look() -> None:
    pace = Pace(lambda: {"bytes": 5_000_000, "queued": 0, "fetching": 1})
    assert pace.wait_for(lambda: time.sleep(0.2)) is None
    first = pace.look()
    assert first["MB/s"] > 0
    assert first["slowest"] == "fetch"
    assert int(str(first["encoders busy"]).rstrip("%")) < 50
    time.sleep(0.05)
    assert pace.look()["encoders busy"] == "100%"
