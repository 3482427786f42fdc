"""What ranks draw together, and what becomes of an error on the way.

Ranks that spread their networks make the same collectives in the same order. An error that all of them meet behind the
same collective leaves them in step, and a look may fail by it as it may on one process: out of memory for pictures that
are too many, say. An error of one rank alone cannot be saved: the others are within a collective that never ends. Then
the run ends, as soon as that rank knows that it is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ddx.errors import DdxError, first_line
from ddx.training.distributed import Ranks
from ddx.training.sharding import Sharding
from ddx.training.spread_tensors import SHARES

Drawn = TypeVar("Drawn")
_numbers = count(1)  # of drawings, the same on every rank
ALONE = timedelta(minutes=5)  # how long a rank with an error waits for the others to have one too


def drawn_together(
    draw: Callable[[], Drawn], networks: Iterable[nn.Module], sharding: Sharding, ranks: Ranks
) -> tuple[Drawn | None, Exception | None]:
    """Return what every rank draws with these networks; or None and the error, where all met one at the same place.

    Raises where a rank was alone with it, and with versions of torch whose networks cannot forget a pass.
    """
    drawn, error = None, None
    try:
        drawn = draw()
    except Exception as failure:
        if not hasattr(FSDPModule, "reset_iter_state"):  # newer than the oldest torch that ddx takes
            raise
        error = failure.with_traceback(None)  # whose frames keep what there was no room for
    if error is not None:
        for network in networks:
            _forget_pass(network)
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    _agree(error, sharding, ranks)
    return drawn, error


def _forget_pass(network: nn.Module) -> None:
    """Let a network be as before a pass that an error has ended: its weights shares, and nothing under way."""
    if isinstance(network, FSDPModule):
        network.reset_iter_state()


def _agree(error: Exception | None, sharding: Sharding, ranks: Ranks) -> None:
    """Return where no rank has an error, or every one behind as many collectives; else raise."""
    here = next(_numbers)
    keys = [f"drawn-{here}-{rank}" for rank in range(ranks.world)]
    assert ranks.meeting is not None
    ranks.meeting.set(keys[ranks.rank], "")
    if error is not None:
        try:
            # not by a group: a collective that is never answered would keep this process from ending
            ranks.meeting.wait(keys, ALONE)
        except RuntimeError:
            raise error from None
    found = ranks.gathered((None if error is None else first_line(error), _num_collectives(sharding, ranks)))
    ranks.meeting.delete_key(keys[ranks.rank])
    alone = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(found) if text is not None]
    if alone and (len(alone) < ranks.world or len({number for _, number in found}) > 1):
        raise error or DdxError(f"drawing failed, and not on every process alike: {alone[0]}")


def _num_collectives(sharding: Sharding, ranks: Ranks) -> int:
    """Return how many collectives this rank has begun in the group that gathers weights."""
    group: Any = sharding.mesh.get_group(SHARES)
    number: int = group._get_backend(ranks.device)._get_sequence_number_for_group()
    return number
