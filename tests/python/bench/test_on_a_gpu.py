"""What only a GPU can show: graphs of every mode, compiled stock, and choosing launch options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddx.bench import kernels, timing
from ddx.bench.case import Size
from ddx.bench.config import KernelsConfig
from ddx.bench.kernels import run
from ddx.bench.operations import chosen_cases
from ddx.bench.tuning import launched_by, tune, write_table

pytestmark = pytest.mark.gpu

SMALL = Size(batch=2)


def test_every_mode_is_timed_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ON_A_GPU", (SMALL,))
    result = run(KernelsConfig(operation=("rms_norm",)))
    for row in result["rows"]:
        assert row["gate"]["passed"], row["gate"]["reason"]
        assert row["failures"] == [], row["failures"]
        for name in ("ours", "eager", "compile"):
            assert all(row["times"][name][kind]["us"] > 0 for kind in ("stream", "graph")), name
        assert 0 < row["roofline_share"] < 1.1
        assert row["launches"]["ours"] < row["launches"]["eager"]
    assert result["environment"]["clocks_at_start"]


def test_a_graph_goes_through_more_data_than_the_cache_holds() -> None:
    device = torch.device("cuda", 0)
    (case, *_) = chosen_cases(SMALL, ["rms_norm"])
    sets = timing.sets_of_inputs(case, device, torch.bfloat16, seed=0)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    moved = case.moved_elements * 2
    assert len(sets) == timing.MOST_SETS or len(sets) * moved >= timing.CACHES * cache


def test_a_choice_is_made_for_every_kernel_and_kept(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    cases = chosen_cases(SMALL, ["rms_norm"])
    trials = tune(cases, device, torch.bfloat16)
    names = {name for case in cases for name in launched_by(case, device, torch.bfloat16)}
    chosen = {trial.kernel: trial.options for trial in trials if trial.chosen}
    assert set(chosen) == names == {"rms_norm", "rms_norm_backward", "rms_norm_dual"}
    write_table(tmp_path / "tuned.json", "a GPU", chosen)
    assert json.loads((tmp_path / "tuned.json").read_text())["a GPU"].keys() == chosen.keys()
