from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distill_runs as runs

STOP_AFTER = 5


def test_killed_at_any_moment_the_same_command_ends_bit_for_bit_the_same(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    student = tmp_path / "killed" / "students" / "tiny-lcm"
    command = [sys.executable, "-m", "ddx.cli.main", *runs.flags(teacher_folder, store, tmp_path / "killed")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    metrics = student / "metrics.jsonl"
    while process.poll() is None and _num_lines(metrics) < STOP_AFTER:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert not (student / "model_index.json").exists()

    assert runs.run(teacher_folder, store, tmp_path / "killed") == student
    runs.assert_same_run(student, runs.run(teacher_folder, store, tmp_path / "undisturbed"))


def _num_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
