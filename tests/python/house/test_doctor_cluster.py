"""`ddx doctor --cluster`: what it makes of the facts of several machines, and two real processes of torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddx.cli import main
from ddx.cli.doctor_cluster import Facts, judge

FIRST = Facts("a", "H200, 139 GiB, CUDA 13.0", {"torch": "2.15"}, 1000.0, True, None, 812.0)
OTHER = replace(FIRST, host="b", clock=1000.3, lock_is_held=True, written=790.0)


def test_machines_that_agree_pass() -> None:
    findings = {finding.name: finding for finding in judge([FIRST, OTHER])}
    assert all(finding.ok for finding in findings.values())
    assert findings["processes"].value == "2 on a, b"
    assert findings["clocks"].value == "0.30 s apart"
    assert findings["writing"].value == "a 812 MB/s, b 790 MB/s"


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"device": "L4, 22 GiB, CUDA 13.0"}, "devices", "rank 0 (a) has H200, 139 GiB, CUDA 13.0; rank 1 (b) has L4"),
        ({"versions": {"torch": "2.14"}}, "equal versions", "torch 2.14 on rank 1 (b), 2.15 on rank 0"),
        ({"versions": {}}, "equal versions", "torch missing on rank 1 (b)"),
        ({"clock": 1009.0}, "clocks", "9.00 s apart"),
        ({"sees_folder": False, "lock_is_held": None, "written": None}, "shared workspace", "not seen by rank 1 (b)"),
        ({"lock_is_held": False}, "locks", "none"),
    ],
)
def test_what_differs_is_named_with_its_place_and_cure(change: dict[str, Any], name: str, words: str) -> None:
    wrong = [finding for finding in judge([FIRST, replace(OTHER, **change)]) if not finding.ok]
    assert [finding.name for finding in wrong] == [name]
    assert words in wrong[0].value and wrong[0].cure


def test_one_process_is_told_how_to_start_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--cluster"]) == 2
    assert "torchrun --nnodes 2" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_meet_and_share_a_folder_with_locks(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    line = ["-m", "ddx", "doctor", "--cluster", "--json", "--workspace", str(tmp_path)]
    done = subprocess.run([*launch, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = {finding["name"] for finding in report["findings"]}
    assert report["ok"] and {"locks", "all-reduce", "writing", "clocks"} <= names
    assert list(tmp_path.iterdir()) == []  # what it wrote is gone
