"""One run at a time writes to a folder: the ranks of a run share its lock, any other process is turned away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ddx.data.ranks import already_written, claim
from ddx.training.distributed import Ranks

LOCK = "trainer"


@contextmanager
def sole_writer(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold `folder`, which is made, for this run; the lock ends with the first rank's process, however that ends.

    DdxError on every rank where another process has it, or where it cannot be written.
    """
    with ExitStack() as held:
        if not ranks.first(lambda: held.enter_context(claim(folder, LOCK))):
            raise already_written(folder)
        yield
