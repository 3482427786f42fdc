"""SIGINT and SIGTERM end a run after the step under way, so that its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ddx.errors import Interrupted
from ddx.training.checkpoint import latest_checkpoint


class StopSignal:
    """While entered, remembers that the process was asked to stop and says so; asked a second time, it stops at once.

    Enter it around the steps alone: before and after them a signal need not wait for anything.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with suppress(RuntimeError):  # stderr was being written to when the signal came
            self._say("stopping after this step; again to stop now")


@contextmanager
def tells_what_is_saved(*checkpoints: Path) -> Iterator[None]:
    """Raise Interrupted, naming the newest checkpoint in these folders (the last one counts), for an interruption."""
    try:
        yield
    except KeyboardInterrupt as error:
        saved = next((found for folder in reversed(checkpoints) if (found := latest_checkpoint(folder))), None)
        where = (
            "nothing is saved yet: the same command begins again"
            if saved is None
            else (f"the same command goes on from {saved}")
        )
        raise Interrupted(hint=where) from error
