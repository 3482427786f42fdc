"""The cost of a command that a benchmark ran before is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:  # not for good: benchmarks/ has modules with names of packages
    patch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    import _command


def test_a_command_runs_once_and_its_cost_is_kept(tmp_path: Path) -> None:
    words = ["scenes", "scenes.parquet", "--rows", "4"]
    cost = _command.once(words, tmp_path, log="scenes", environment={})
    made = (tmp_path / "scenes.parquet").stat().st_mtime_ns
    assert cost > 0
    assert _command.once(words, tmp_path, log="scenes", environment={}) == cost
    assert (tmp_path / "scenes.parquet").stat().st_mtime_ns == made


def test_another_command_of_that_name_is_run(tmp_path: Path) -> None:
    for name in ("first.parquet", "second.parquet"):
        _command.once(["scenes", name, "--rows", "4"], tmp_path, log="scenes", environment={})
        assert (tmp_path / name).exists()


def test_a_command_that_failed_leaves_no_cost(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with 2"):
        _command.once(["scenes", "--rows", "4", "--bogus"], tmp_path, log="scenes", environment={})
    assert not (tmp_path / "scenes.json").exists()
