"""A progress that remembers what a run says."""

from __future__ import annotations

from ddx.progress import NullProgress


class Heard(NullProgress):
    """Hears what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, message: str) -> None:
        self.said.append(message)
