"""What a tracker does, and what it is told of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddx.run_record import write_json

PROJECT = "ddx"


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run as its trackers see it. settings: all of them, JSON values. start: the step that it goes on from."""

    name: str
    folder: Path  # its own files go there, beside the student
    settings: Mapping[str, Any]
    start: int


class Tracker(Protocol):
    """One tracker of one run. Any of its calls may fail: the run then goes on without it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers by name."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Take a picture that is a file already."""

    def weights(self, step: int, path: Path) -> None:
        """Take the weights of the best step, a file of safetensors."""

    def close(self, *, finished: bool) -> None:
        """End this sitting. `finished` tells a run that is done from one that will go on or failed."""


def kept_id(folder: Path, name: str) -> str | None:
    """Return the identifier under which a tracker knows this run, None before the first sitting."""
    try:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def keep_id(folder: Path, name: str, identifier: str) -> None:
    """Keep the identifier, so that a later sitting goes on with the same run."""
    write_json(folder / f"{name}.json", {"id": identifier})
