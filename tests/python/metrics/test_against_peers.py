"""Metrics on made features equal what torch-fidelity, clean-fid, torchmetrics, pytorch-fid and prdc said of them.

The peers' values lie in benchmarks/results/picture_metrics.json, which benchmarks/picture_metrics.py writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

with pytest.MonkeyPatch.context() as patch:  # not for good: benchmarks/ has modules with names of packages
    patch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    import _feature_sets
    import picture_metrics

SETS = {features.name: features for features in _feature_sets.feature_sets()}


@pytest.fixture
def stored(repository: Path) -> dict[str, Any]:
    found = json.loads((repository / "benchmarks/results/picture_metrics.json").read_text())["result"]["sets"]
    assert list(found) == list(SETS)
    return dict(found)


@pytest.mark.parametrize("name", SETS)
def test_each_metric_is_its_peers(name: str, stored: dict[str, Any]) -> None:
    mine = picture_metrics.ours(SETS[name])
    peers = stored[name]["peers"]
    assert {"fid", "precision", "recall", "density", "coverage"} <= peers.keys()
    for metric, values in peers.items():
        assert values, metric
        for peer, value in values.items():
            assert mine[metric] == pytest.approx(value, rel=1e-4, abs=1e-4), (metric, peer)
