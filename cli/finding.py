"""What `ddx doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `cure` says what to do when `ok` is false."""

    name: str
    ok: bool
    value: str
    cure: str = ""
