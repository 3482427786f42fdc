"""The benchmark of collapses looks at what a run's own looks draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddx.cli.main import run
from ddx.training import watching

with pytest.MonkeyPatch.context() as patch:  # not for good: benchmarks/ has modules with names of packages
    patch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    import collapses


def test_each_look_has_the_marks_of_captions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDX_WORKSPACE", str(tmp_path / "runs"))
    for line in (
        ["scenes", "scenes.parquet", "--rows", "16"],
        ["precompute", "scenes.parquet", "--teacher", "sana-tiny"],
        ["distill", *("--teacher", "sana-tiny", "--train-steps", "1", "--sample-every", "0"), "--out", "first"],
    ):
        assert run([*line, "--quiet"]) == 0
    for name, value in {"STEPS": 2, "EVERY": 1, "WARM_UP": 1, "CAPTIONS": 8}.items():
        monkeypatch.setattr(collapses, name, value)
    monkeypatch.setattr(watching, "Easel", collapses.ScoredEasel)
    row = collapses.run(collapses.CASES[0], 0, tmp_path, tmp_path / "first")
    assert row["error"] is None and [look["step"] for look in row["looks"]] == [0, 1, 2]
    for look in row["looks"]:
        assert look["scores"].keys() == {"overall", "recall", "precision"}
        assert 0.0 <= look["scores"]["recall"] <= 1.0
