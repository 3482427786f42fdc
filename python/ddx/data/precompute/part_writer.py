"""Finished parts go to disk on a thread of their own: the device goes on encoding."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ddx.data.core import core_errors
from ddx.data.layout import Array, Sizes
from ddx.data.precompute.part import Part
from ddx.data.rows import errors_path, piece_path

if TYPE_CHECKING:
    from ddx._core import StoreWriter

# Parts in memory beside the one being encoded. More would only hide a disk that is too slow for good.
WAITING_PARTS = 1


class PartWriter:
    """A queue and its thread. The first failure is raised by the next call, in the caller's thread.

    `replace`: the parts are done already, and count as they are until the new ones are whole. `then` is called with
    the number of each part that is on disk.
    """

    def __init__(
        self,
        writer: StoreWriter,
        sizes: Sizes,
        *,
        replace: bool = False,
        then: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.writer, self.sizes, self.replace, self.then = writer, sizes, replace, then
        self.written = 0
        self._queue: queue.Queue[Part | None] = queue.Queue(WAITING_PARTS)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ddx-part-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Complete parts are worth keeping whatever ended the run.
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def put(self, part: Part) -> None:
        """Hand over a part; waits only while the one before is still being written."""
        self._raise()
        self._queue.put(part)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (part := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                with core_errors():
                    self._write(part)
                self.then(part.number)
                self.written += 1
            except BaseException as error:
                self._error = error

    def _write(self, part: Part) -> None:
        # The list of failed rows is written when it is empty too: a replaced part would otherwise keep its old one.
        files = {piece_path(part.number): part.rows.parquet(), errors_path(part.number): part.rows.errors()}
        self.writer.write_part(
            part=part.number,
            first_row=part.rows.first_row,
            rows=len(part.rows.status),
            ok=len(part.rows.ok),
            failed=part.rows.counts(),
            shards={name: (ids, raw(data)) for name, (ids, data) in part.shards(self.sizes).items()},
            files=files,
            replace=self.replace,
        )


def raw(array: Array) -> Array:
    """The bytes of an array, as the core takes them."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
