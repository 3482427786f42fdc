"""The command line of ddx, in which a process is killed once: `training/test_restarts.py`.

    torchrun … dies_once.py RANK STEP MARKER [the arguments of ddx, as JSON] …

The rank dies as it begins to write the checkpoint of the step, unless MARKER, which it makes then, is there. RANK `all`
is every one, and torchrun dies with it, as if its machine were gone; `none` is none. MACHINE in the environment is the
number of processes of a machine, as if there were several.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ddx.cli.leaving import leave
from ddx.cli.main import run


def dies(rank: str, step: str, marker: Path) -> None:
    """Watch for what a rank does first in a save."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and f".step-{int(step):06d}." in str(arguments[0]) and not marker.exists():
            marker.touch()
            for process in ([os.getppid()] if rank == "all" else []) + [os.getpid()]:
                os.kill(process, signal.SIGKILL)

    if rank in (os.environ["RANK"], "all"):
        sys.addaudithook(watch)


if __name__ == "__main__":
    os.environ["LOCAL_WORLD_SIZE"] = os.environ.get("MACHINE", os.environ["LOCAL_WORLD_SIZE"])
    dies(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    leave(next((code for line in sys.argv[4:] if (code := run(json.loads(line)))), 0))
