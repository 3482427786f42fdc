"""The workspace: names, the newest finished artefact, its own defaults, and records that are whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ddx.errors import DdxError, UsageError
from ddx.run_record import read_run, versions, write_run
from ddx.workspace import Workspace


def test_names(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.store_path("some/laion.parquet", "sana-600m", 512) == tmp_path / "data/laion-sana-600m-512.zarr"
    assert workspace.store_path("a/part-*.parquet", "/models/My Teacher/", 64).name == "part-My-Teacher-64.zarr"
    assert workspace.store_path("https://host/x/pairs.parquet", "sd15", 512).name == "pairs-sd15-512.zarr"
    first = workspace.new_student_path("sana-tiny", "lcm")
    assert first == tmp_path / "students/sana-tiny-lcm"
    write_run(first, {}, finished=False)
    assert workspace.new_student_path("sana-tiny", "lcm").name == "sana-tiny-lcm-2"


def test_the_newest_finished_student_that_matches(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for age, (name, teacher, finished) in enumerate([("a", "x", True), ("b", "y", True), ("c", "x", False)]):
        path = write_run(tmp_path / "students" / name, {"kind": "student", "teacher": teacher}, finished=finished)
        os.utime(path, (1000 + age, 1000 + age))
    for damaged in ("empty", "torn"):
        (tmp_path / "students" / damaged).mkdir()
    (tmp_path / "students" / "torn" / "run.json").write_text('{"kind": "stu')
    assert [student.name for student in workspace.students()] == ["c", "b", "a"]
    assert workspace.newest_student() == tmp_path / "students/b"
    assert workspace.newest_student(lambda s: s.record["teacher"] == "x") == tmp_path / "students/a"
    assert workspace.newest_student(lambda s: False) is None


def test_a_store_is_finished_once_its_rows_are_written(tmp_path: Path) -> None:
    store = tmp_path / "data" / "pairs-sana-tiny-64.zarr"
    store.mkdir(parents=True)
    (store / "zarr.json").write_text(json.dumps({"attributes": {"ddx": {"teacher": "sana-tiny"}}}))
    (tmp_path / "data" / "broken.zarr").mkdir()
    workspace = Workspace(tmp_path)
    assert [(a.name, a.finished) for a in workspace.stores()] == [(store.name, False)]
    assert workspace.newest_store() is None
    (store / "rows.parquet").touch()
    assert workspace.newest_store(lambda a: a.record["teacher"] == "sana-tiny") == store


def test_workspace_defaults(tmp_path: Path) -> None:
    (tmp_path / "ddx.yaml").write_text("distill: {train_steps: 4}\nsample: [1]\n")
    workspace = Workspace(tmp_path)
    assert workspace.settings("distill") == {"train_steps": 4}
    assert workspace.settings("precompute") == {}
    with pytest.raises(UsageError, match=r"`sample` in .*ddx\.yaml does not hold a mapping"):
        workspace.settings("sample")


def test_root_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDX_WORKSPACE", "/somewhere")
    assert Workspace().root == Path("/somewhere")
    monkeypatch.delenv("DDX_WORKSPACE")
    assert Workspace().root == Path("runs")


def test_records(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    (tmp_path / ".run.json.tmp").write_text("{ what a killed process left")
    write_run(tmp_path, {"a": 1, "path": tmp_path}, finished=True)
    assert read_run(tmp_path) == {"a": 1, "path": str(tmp_path), "finished": True}
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DdxError, match="cannot read"):
        read_run(tmp_path)


def test_versions_name_what_decides_bytes() -> None:
    assert {"ddx", "python", "torch", "diffusers"} <= set(versions())
