"""`watch.jsonl`: one line a look, appended; a resumed run cuts off what it will do again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "watch.jsonl"


class History:
    """The looks of one run, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.looks: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        """Read the looks up to `step`, and drop the later ones, a torn last one included."""
        self.looks = [look for look in read_looks(self.path) if int(look["step"]) <= step]
        if not self.path.exists():
            return
        temporary = self.path.with_name(f".{FILE_NAME}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(look) + "\n" for look in self.looks), encoding="utf-8")
        os.replace(temporary, self.path)

    def add(self, look: Mapping[str, Any]) -> None:
        """Append one."""
        self.looks.append(dict(look))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(look) + "\n")


def read_looks(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `watch.jsonl`, up to one that a kill has torn; none without the file."""
    found: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines():
        try:
            look = json.loads(line)
        except ValueError:
            break
        if not isinstance(look, dict) or "step" not in look:
            break
        found.append(look)
    return found
