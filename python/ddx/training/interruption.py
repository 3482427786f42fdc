"""SIGINT and SIGTERM end a run after the step under way, so that its state can be saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ddx.checkpoints.folder import latest_checkpoint
from ddx.errors import Interrupted

TWICE_S = 5.0  # between two requests to stop


class StopSignal:
    """While entered, remembers that the process was asked to stop and says so; asked a second time, it stops at once.

    Under torchrun one request may come twice, from torchrun and from whoever sent it to all processes of the job, as
    Slurm does: there a second one counts when some seconds lie between.

    Enter it around the steps alone: before and after them a signal need not wait for anything.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, Any] = {}
        self._apart_s = TWICE_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._asked = 0.0

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
            if time.monotonic() - self._asked >= self._apart_s:
                raise KeyboardInterrupt
            return
        self.requested, self._asked = True, time.monotonic()
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
