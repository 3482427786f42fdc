"""Networks whose weights are spread over processes, as code meets them that does not go through a module's call.

FSDP2 gathers the weights of a module when the module is called. What calls its parts instead asks for them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def gather(network: nn.Module) -> None:
    """Make the weights around the blocks of a network whole, as its own pass would: until the end of a micro-batch.

    All processes must come here. Nothing happens to a module that holds its weights itself.
    """
    spread: Any = network if hasattr(network, "unshard") else None
    if spread is not None:
        spread.unshard()


@contextmanager
def gathered(block: nn.Module) -> Iterator[None]:
    """Within, the weights of a block are whole; see :func:`gather`."""
    spread: Any = block if hasattr(block, "unshard") else None
    if spread is None:
        yield
        return
    spread.unshard()
    try:
        yield
    finally:
        spread.reshard()
