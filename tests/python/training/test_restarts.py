"""When a machine fails, the same command goes on: started again by torchrun, or with fewer processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dies_once
import distill_runs as runs
from watchdog import WATCHDOG_S


def torchrun(world: int, restarts: int, marker: Path, *lines: list[str]) -> subprocess.CompletedProcess[str]:
    """Run these commands of ddx, whose second rank dies as it saves step 6, once."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += ["--max-restarts", str(restarts), dies_once.__file__, "1", "6", str(marker)]
    return subprocess.run(
        [*command, *map(json.dumps, lines)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def test_a_rank_killed_in_a_save_is_started_again_and_the_run_ends_bit_for_bit_the_same(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    """Two starts of two processes: what torchrun and a dead peer do cannot be had for less."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    lines = [runs.flags(teacher_folder, store, tmp_path, out=out) for out in (killed, undisturbed)]
    done = torchrun(2, 3, tmp_path / "died", *lines)
    assert done.returncode == 0, done.stderr[-8000:]
    assert (tmp_path / "died").exists() and "going on" in done.stderr
    runs.assert_same_run(killed, undisturbed)


@pytest.mark.slow  # three starts of two or four processes
def test_a_run_of_four_ranks_that_dies_goes_on_with_two(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    line = runs.flags(teacher_folder, store, tmp_path, out=tmp_path / "out")
    assert torchrun(4, 0, tmp_path / "died", line).returncode != 0
    assert [path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*")] == ["step-000003"]
    done = torchrun(2, 0, tmp_path / "died", line)
    assert done.returncode == 0, done.stderr[-8000:]
    alone = runs.run(teacher_folder, store, tmp_path / "alone")
    ours, theirs = ([line["loss"] for line in runs.lines(student)] for student in (tmp_path / "out", alone))
    assert len(ours) == runs.STEPS and ours == pytest.approx(theirs, rel=1e-5)
