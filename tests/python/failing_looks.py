"""The command line of ddx, whose looks and grids fail in the midst of a network's pass: `test_looks_in_shares.py`.

    torchrun … failing_looks.py WHO CALLS [the arguments of ddx, as JSON] …

WHO is "all", or the rank that fails alone and waits two seconds for the others. CALLS are the numbers of the drawings,
from 1, at which the first block of the network that draws raises an error. A grid has two drawings, the teacher's and
the student's, and so has the first look that works; later looks have the student's alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ddx.cli.leaving import leave
from ddx.cli.main import run
from ddx.teachers.blocks import blocks_of
from ddx.training import drawn_together, run_grids, watching


def failing(who: str, calls: set[int]) -> None:
    """Let drawings fail, on the ranks that are meant."""
    draw_together, number = watching.drawn_together, 0

    def draws(draw: Callable[[], Any], networks: tuple[nn.Module, ...], *others: Any) -> Any:
        nonlocal number
        number += 1
        if number not in calls or who not in ("all", os.environ["RANK"]):
            return draw_together(draw, networks, *others)
        # behind FSDP's own hook: the block's weights are gathered by then, those of the next ones not yet
        hook = blocks_of(networks[0])[0].register_forward_pre_hook(_raise)
        try:
            return draw_together(draw, networks, *others)
        finally:
            hook.remove()

    watching.drawn_together = run_grids.drawn_together = draws


def _raise(block: nn.Module, inputs: Any) -> None:
    raise torch.OutOfMemoryError("no room for a drawing of this size")


if __name__ == "__main__":
    if sys.argv[1] != "all":
        drawn_together.ALONE = timedelta(seconds=2)
    failing(sys.argv[1], set(json.loads(sys.argv[2])))
    leave(next((code for line in sys.argv[3:] if (code := run(json.loads(line)))), 0))
