from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import distill_runs as runs
from watchdog import WATCHDOG_S

# Dies where a kill does most harm: with a checkpoint written, and not yet in its place.
CODE = """
import os, signal, sys

def die(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("step-000006"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
from ddx.cli import main
main.run({flags!r})
"""


def test_killed_while_it_writes_a_checkpoint_the_same_command_ends_bit_for_bit_the_same(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    student = tmp_path / "killed" / "students" / "tiny-lcm"
    code = CODE.format(flags=runs.flags(teacher_folder, store, tmp_path / "killed"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=WATCHDOG_S
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path.name.rpartition(".")[0] or path.name for path in (student / "checkpoints").iterdir()]
    assert sorted(left) == [".step-000006", "step-000003"] and len(runs.lines(student)) >= 5
    assert not (student / "model_index.json").exists()

    assert runs.run(teacher_folder, store, tmp_path / "killed") == student
    runs.assert_same_run(student, runs.run(teacher_folder, store, tmp_path / "undisturbed"))
