"""`ddx precompute` and `ddx inspect` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddx.cli import main


@pytest.fixture(scope="module")
def workspace(teacher_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one store."""
    root = tmp_path_factory.mktemp("workspace")
    line = ["precompute", str(pairs), "--teacher", str(teacher_folder), "--part-rows", "8", "--device", "cpu"]
    assert main.run([*line, "--workspace", str(root), "--quiet"]) == 0
    return root


@pytest.fixture
def store(workspace: Path) -> Path:
    return workspace / "data" / "pairs-sana-64.zarr"


def test_the_store_lies_where_the_next_stage_looks(workspace: Path, store: Path) -> None:
    from ddx.workspace import Workspace

    assert Workspace(workspace).newest_store() == store


def test_with_json_the_progress_is_lines_of_json_on_stderr(
    teacher_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["precompute", str(pairs), "--teacher", str(teacher_folder), "--part-rows", "8", "--device", "cpu"]
    assert main.run([*line, "--workspace", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["complete"]
    lines = [json.loads(text) for text in captured.err.splitlines()]
    assert any("14 rows" in line.get("log", "") for line in lines)
    stages = [line for line in lines if "stage" in line]
    assert {"stage": "precompute", "unit": "rows", "done": 0, "total": 14, "finished": False}.items() <= stages[
        0
    ].items()
    assert stages[-1]["done"] == 14 and stages[-1]["finished"] and stages[-1]["failed"] == 3


def test_the_result_is_on_stdout(
    workspace: Path, store: Path, teacher_folder: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["precompute", str(pairs), "--teacher", str(teacher_folder), "--part-rows", "8", "--device", "cpu"]
    assert main.run([*line, "--workspace", str(workspace)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(store)
    assert "is complete" in captured.err
    assert main.run([*line, "--workspace", str(workspace), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "store": str(store),
        "rows": 14,
        "ok": 11,
        "failed": {"no_caption": 1, "not_an_image": 2},
        "complete": True,
    }


def test_inspect_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", str(store), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["ok"], summary["complete"]) == (14, 11, True)
    assert summary["failed"] == {"no_caption": 1, "not_an_image": 2}
    assert summary["bytes"]["latents"] > 11 * 8 * 8 * 8 * 2
    assert main.run(["inspect", str(store)]) == 0
    out = capsys.readouterr().out
    assert "not_an_image     2   14.29%" in out.splitlines()
    assert "resolution: 64" in out.splitlines()


def test_inspect_a_teacher_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", "sana-tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "sana"
    assert main.run(["inspect", "nowhere"]) == 2
    assert "hint: " in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    teacher_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["precompute", str(pairs), "--teacher", str(teacher_folder), "--device", "cpu", "--dry-run", "--json"]
    assert main.run([*line, "--workspace", str(tmp_path / "runs")]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["batch_size"] == 8
    assert planned["writes"].startswith(str(tmp_path / "runs"))
    assert planned["estimated_seconds"] > 0
    assert planned["estimated_memory_bytes"] > planned["estimated_disk_bytes"] > 14 * 8 * 8 * 8 * 2
    assert not (tmp_path / "runs").exists()
