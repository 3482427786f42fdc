"""A complete store is made incomplete again, so that its parts may change, while nobody reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddx.data.ranks import COMPLETE, READERS, claim
from ddx.data.rows import FILE_NAME
from ddx.errors import DdxError
from ddx.run_record import sync


@contextmanager
def reopened(store: Path, what: str) -> Iterator[None]:
    """Take rows.parquet away, and keep readers and other ranks out of the block; afterwards it stays away.

    `what` would change under a reader, in words. Raises DdxError when there is one.
    """
    # One rank at a time: else two of them would take each other for a training.
    with claim(store, COMPLETE, wait=True), claim(store, READERS) as alone:
        if not alone:
            raise DdxError(
                f"{store} is being read, and {what} would change it under the reader",
                hint="wait until the training has ended, then run the same command",
            )
        (store / FILE_NAME).unlink(missing_ok=True)
        sync(store)
        yield
