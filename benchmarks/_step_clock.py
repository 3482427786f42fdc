"""Run a program, `-m module arguments` or `script arguments`, and write when each of its optimiser steps ended.

python _step_clock.py ticks.json -m ddx.cli.main distill …
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    """Hook every optimiser, run, and write the times whatever happens."""
    out, *command = sys.argv[1:]
    seconds: list[float] = []

    def tick(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter())

    register_optimizer_step_post_hook(tick)
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        Path(out).write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
