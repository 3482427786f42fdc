"""`watch.jsonl`: one line a look, appended; a resumed run cuts off what it will do again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddx.json_lines import add_line, keep_lines, read_steps

FILE_NAME = "watch.jsonl"


class History:
    """The looks of one run, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.looks: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        """Read the looks up to `step`, and drop the later ones, a torn last one included."""
        self.looks = [look for look in read_steps(self.path) if look["step"] <= step]
        if self.path.exists():
            keep_lines(self.path, self.looks)

    def add(self, look: Mapping[str, Any]) -> None:
        """Append one."""
        self.looks.append(dict(look))
        add_line(self.path, look)
