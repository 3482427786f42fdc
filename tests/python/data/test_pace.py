"""The display names the stage that holds up the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddx.data.precompute.pace import Pace, slowest


@pytest.mark.parametrize(
    ("waiting", "queued", "fetching", "stage"),
    [(0.05, 9, 9, "encode"), (0.9, 3, 9, "decode"), (0.9, 0, 9, "fetch"), (0.9, 0, 0, "read")],
)
def test_the_slowest_stage(waiting: float, queued: int, fetching: int, stage: str) -> None:
    assert slowest(waiting, {"queued": queued, "fetching": fetching}) == stage


def test_shares_are_those_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 5.0, 6.0])  # made; the step begins and ends; two looks
    monkeypatch.setattr("ddx.data.precompute.pace.time", SimpleNamespace(monotonic=lambda: next(clock)))
    pace = Pace(lambda: {"bytes": 5_000_000, "queued": 0, "fetching": 1})
    assert pace.wait_for(lambda: "done") == "done"
    assert pace.look() == {"MB/s": 1.0, "encoders busy": "40%", "slowest": "fetch"}
    assert pace.look()["encoders busy"] == "100%"
