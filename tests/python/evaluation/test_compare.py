"""`ddx compare`: students in one table, reports in one table, and what of their protocols differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddx.cli.main import run


def report(folder: Path, **protocol: Any) -> Path:
    folder.mkdir()
    known = {"protocol": None, "prompts_sha256": "a", "num_images": 30_000, "resize": 256, "dtype": "bf16", **protocol}
    row = {"model": folder.name, "steps": 1, "guidance": None, "fid": 20.5, "clipscore": 30.0}
    (folder / "report.json").write_text(json.dumps({"rows": [row], "protocol": known}))
    return folder


def test_reports_say_which_field_of_the_protocol_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, other = report(tmp_path / "one"), report(tmp_path / "two")
    third = report(tmp_path / "three", resize=None, num_images=5_000)
    assert run(["compare", str(same), str(other / "report.json")]) == 0
    shown = capsys.readouterr().out
    assert "the protocols agree" in shown and "20.5" in shown and "clipscore" in shown
    assert run(["compare", str(same), str(third), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in answer["rows"]] == ["one", "three"]
    assert [text.split(" differ in ")[1] for text in answer["differences"]] == [
        "num_images: 30000 and 5000",
        "resize: 256 and None",
    ]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = report(tmp_path / "real")
    own = tmp_path / "own"
    own.mkdir()
    (own / "report.json").write_text(json.dumps({"rows": [{"model": "a", "frechet": 1.0}], "feature_space": "x"}))
    (tmp_path / "text.json").write_text("[")
    for arguments, message in (
        ([], "there is nothing to compare"),
        ([str(real), str(own)], "in ddx's own feature space"),
        ([str(real), str(tmp_path / "student")], "reports and students together"),
        ([str(real), str(tmp_path / "text.json")], "cannot read the report"),
    ):
        assert run(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_students_are_put_into_one_table(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--num-images", "4", "--set", "diversity_captions=1", "--set", "diversity_seeds=2", "--device", "cpu"]
    command = ["compare", str(student), str(student), "--steps", "1", "--teacher-steps", "1"]
    assert run([*command, *small, "--workspace", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows if row["model"] != "teacher"] == ["tiny-lcm", "tiny-lcm"]
