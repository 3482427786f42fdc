"""Ranks that leave and join again in one process, as the stages of `ddx run` do, and one is behind the other."""

from __future__ import annotations

import os
import subprocess
import sys

from watchdog import WATCHDOG_S

JOINS = """
import os, time
import torch
from ddx.training.distributed import join
first = int(os.environ["RANK"]) == 0
for turn in range(4):
    with join("cpu") as ranks:
        total = ranks.mean(torch.tensor(float(ranks.rank + turn)))
        assert float(total) == turn + 0.5, total
        time.sleep(0.5 * (first == bool(turn % 2)))  # the other one joins again before this one has left
"""


def test_ranks_join_again_however_far_one_is_behind() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    for own_store in ("0", "1"):
        given = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        given |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": own_store}
        done = subprocess.run(
            [*command, sys.executable, "-c", JOINS], env=given, capture_output=True, text=True, timeout=WATCHDOG_S
        )
        assert done.returncode == 0, done.stderr[-4000:]
