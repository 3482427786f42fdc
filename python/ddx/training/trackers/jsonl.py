"""One file of lines with everything that a tracker is told: settings, numbers and the paths of pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddx.training.trackers.base import Tracked


class JSONLines:
    """`track.jsonl`: {"step", "settings" | "values" | "picture"} a line. A later sitting drops what it does again."""

    def __init__(self, run: Tracked) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self.path = run.folder / "track.jsonl"
        kept = [line for line in self._lines() if line["step"] <= run.start] if run.start else []
        temporary = self.path.with_suffix(f".{os.getpid()}")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self._write({"step": run.start, "name": run.name, "settings": dict(run.settings)})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        self._write({"step": step, "values": dict(values)})

    def picture(self, step: int, name: str, path: Path) -> None:
        """See :meth:`Tracker.picture`."""
        self._write({"step": step, "picture": str(path), "name": name})

    def close(self, *, finished: bool) -> None:
        """Nothing is open."""

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                line = json.loads(text)
                found.append({**line, "step": int(line["step"])})
            except (ValueError, TypeError, KeyError):  # torn by a kill
                break
        return found
