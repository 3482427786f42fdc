from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kill_savers
from watchdog import WATCHDOG_S


@pytest.mark.parametrize("kills", [pytest.param(6, marks=pytest.mark.short), pytest.param(50, marks=pytest.mark.slow)])
def test_ranks_killed_while_they_save_lose_nothing_that_was_in_place(kills: int, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, kill_savers.__file__, str(tmp_path / "checkpoints"), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done.stderr[-8000:]
    found = json.loads(done.stdout)
    assert found["newest"] >= kills and found["half_written"] > 0
