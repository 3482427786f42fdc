"""Real processes under `torchrun`, on one machine's loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from watchdog import WATCHDOG_S


def torchrun(num: int, *arguments: str, **environment: str) -> str:
    """Run a script, or a module after "-m", in `num` processes that find the tests' modules; return what they say."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num), *arguments]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path, **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done.stderr[-8000:]
    return done.stdout + done.stderr
