"""What two processes under `torchrun` do for `training/test_saver.py`: wait for a disk, longer than a collective may.

torchrun --nproc-per-node 2 slow_disk.py FOLDER
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from ddx.checkpoints.folder import Snapshot, list_checkpoints
from ddx.training import saver as saving
from ddx.training.distributed import join
from ddx.training.saver import Saver

COLLECTIVE_S, DISK_S = 20, 50

if __name__ == "__main__":
    write_pieces = saving.write_pieces

    def slowly(*arguments: Any) -> dict[str, int]:
        time.sleep(DISK_S)
        return write_pieces(*arguments)

    with join("cpu") as ranks:
        _set_pg_timeout(timedelta(seconds=COLLECTIVE_S))
        if ranks.rank == 1:
            saving.write_pieces = slowly
        saver = Saver(Path(sys.argv[1]), ranks, keep=1)
        saver.start(1, Snapshot({"student": {"w": torch.zeros(5)}}, {"step": 1}))
        assert len(list_checkpoints(Path(sys.argv[1]))) == 1
        if ranks.is_first:
            time.sleep(DISK_S)  # as it does while it writes the student
        ranks.wait()
