"""Files of one JSON object a line, appended while a run goes; a line that a kill has torn ends what is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the objects, each of which has a "step", up to a line that is none; nothing without the file."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"])})
        except (ValueError, TypeError, KeyError):
            break
    return found


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one object."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")


def keep_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by these lines, by temporary file and rename: a resumed run drops what it will do again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
