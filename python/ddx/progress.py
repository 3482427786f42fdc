"""How long work tells the world how far it is. The library speaks to a `Progress`; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One stage after another: `start`, any number of `advance` and `log`, `finish`. Calls are cheap and never fail."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin a stage of `total` units (None when it is not known), finishing the one before if it is still open."""

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        """Count `n` units more; `stats` are the latest values to show beside the bar, such as `loss=0.12`."""

    def log(self, message: str) -> None:
        """Print one line that stays."""

    def finish(self) -> None:
        """End the stage."""


class NullProgress:
    """Says nothing: the default of every library function, so that none of them tests for None."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Ignore it."""

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        """Ignore it."""

    def log(self, message: str) -> None:
        """Ignore it."""

    def finish(self) -> None:
        """Ignore it."""
