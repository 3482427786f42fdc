"""Waiting for other processes and servers: as long as it takes, on however slow a machine.

No test may pass or fail by a clock. The one limit is a watchdog: it ends what would never end by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

WATCHDOG_S = 1800.0
# For pictures of a server that a test holds back or that a busy machine serves late: no row fails by its age.
PATIENT = {"connect_timeout_s": WATCHDOG_S, "idle_timeout_s": WATCHDOG_S, "total_timeout_s": 2 * WATCHDOG_S}
PATIENT_FLAGS = tuple(word for key, value in PATIENT.items() for word in (f"--{key.replace('_', '-')}", str(value)))


class Process(Protocol):
    """What is asked of a process that is waited for."""

    def poll(self) -> int | None: ...

    def communicate(self) -> tuple[str, str]: ...


def wait_until(happened: Callable[[], object], process: Process | None = None) -> None:
    """Look until it has happened; a process that ends without having made it happen is an error with its words."""
    give_up = time.monotonic() + WATCHDOG_S
    while True:
        ended = process is not None and process.poll() is not None  # asked first: its last deed counts
        if happened():
            return
        assert not ended, process.communicate()[1] if process else ""
        assert time.monotonic() < give_up, "the watchdog: it never happened"
        time.sleep(0.005)
