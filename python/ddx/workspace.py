"""Where runs live, and how a stage finds what the one before it made.

runs/ddx.yaml                                     settings of this workspace, one section a command (optional)
runs/data/<source>-<teacher>-<resolution>.zarr
runs/students/<teacher>-<method>[-n]/
runs/samples/<student>/…png + index.html
runs/reports/…
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.config import Settings, read_yaml
from ddx.errors import DdxError, UsageError
from ddx.run_record import read_run

DEFAULT_ROOT = "runs"
SETTINGS_FILE = "ddx.yaml"
LOCKS = "_ddx"  # of a store also what else is its own


@dataclass(frozen=True)
class Artefact:
    """A store or a student as the workspace sees it: where it is, what it says of itself, when it was last written."""

    path: Path
    record: dict[str, Any]
    finished: bool
    modified: float

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


class Workspace:
    """One folder that holds every output. Nothing is created before a stage writes into it."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("DDX_WORKSPACE") or DEFAULT_ROOT).expanduser()

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    def settings(self, command: str) -> Settings:
        """Return the defaults of `command` in this workspace: its section in `ddx.yaml`, or nothing."""
        path = self.root / SETTINGS_FILE
        if not path.is_file():
            return Settings({}, str(path))
        section = read_yaml(path).get(command) or {}
        if not isinstance(section, dict):
            raise UsageError(
                f"`{command}` in {path} does not hold a mapping", hint=f"write `{command}:`, then `  key: value` lines"
            )
        return Settings(section, f"{path}, section `{command}`")

    def store_path(self, source: str, teacher: str, resolution: int, *, synthetic: bool = False) -> Path:
        """Return where the store of `source` (the stem of its path or URL) for `teacher` at `resolution` px belongs.

        One of pictures that the teacher draws has a place of its own.
        """
        end = "-synthetic" if synthetic else ""
        return self.root / "data" / f"{slug(_stem(source))}-{slug(_stem(teacher))}-{resolution}{end}.zarr"

    def teacher_path(self, name: str, kind: str = "") -> Path:
        """Return where the teacher `name` belongs; one of a `kind` that is made of it has that in its name."""
        end = f"-{kind}" if kind else ""
        return self.root / "teachers" / f"{slug(_stem(name))}{end}"

    def new_student_path(self, teacher: str, method: str) -> Path:
        """Return a folder for a new student: `<teacher>-<method>`, or `…-2`, `…-3` when that one is taken."""
        base = self.root / "students" / f"{slug(_stem(teacher))}-{slug(method)}"
        path, number = base, 2
        while not is_vacant(path):
            path = base.with_name(f"{base.name}-{number}")
            number += 1
        return path

    def sample_path(self, student: str | Path) -> Path:
        """Return where the pictures of `student` (a folder or a name) go."""
        return self.root / "samples" / slug(_stem(str(student)))

    def report_path(self, name: str) -> Path:
        """Return the folder of the report `name`."""
        return self.root / "reports" / slug(name)

    def stores(self) -> list[Artefact]:
        """Return every store, the newest first. `record` is the store's `ddx` attributes."""
        return _newest_first(_store(path) for path in _folders(self.root / "data") if path.suffix == ".zarr")

    def students(self) -> list[Artefact]:
        """Return every student, the newest first. `record` is its run.json; a folder without one is not a student."""
        return _newest_first(_student(path) for path in _folders(self.root / "students"))

    def newest_store(self, match: Callable[[Artefact], bool] | None = None) -> Path | None:
        """Return the newest finished store that `match` accepts, or None."""
        return next((a.path for a in self.stores() if a.finished and (match is None or match(a))), None)

    def newest_student(self, match: Callable[[Artefact], bool] | None = None) -> Path | None:
        """Return the newest finished student that `match` accepts, or None."""
        return next((a.path for a in self.students() if a.finished and (match is None or match(a))), None)


def is_vacant(folder: Path) -> bool:
    """Return whether a run may begin in `folder`: nothing is there, but for the lock of one that wrote nothing."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.name == LOCKS for path in folder.iterdir())


def slug(name: str) -> str:
    """Return `name` as a safe part of a file name: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _stem(name: str) -> str:
    """Return the last part of a path, URL or hub id without its extension; `laion-*.parquet` gives `laion`."""
    last = name.rstrip("/").split("/")[-1] if "/" in name else name
    for suffix in (".parquet", ".tar", ".tsv", ".csv", ".jsonl", ".zarr"):
        last = last.removesuffix(suffix)
    return last.rstrip("*-_.") or "data"


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _newest_first(found: Iterable[Artefact | None]) -> list[Artefact]:
    return sorted((a for a in found if a is not None), key=lambda a: (a.modified, a.name), reverse=True)


def _store(path: Path) -> Artefact | None:
    metadata = path / "zarr.json"
    try:
        attributes = json.loads(metadata.read_text(encoding="utf-8")).get("attributes", {}).get("ddx", {})
        modified = metadata.stat().st_mtime
    except (OSError, ValueError, AttributeError):
        return None
    # rows.parquet is written last, when every part is committed.
    rows = path / "rows.parquet"
    finished = rows.is_file()
    return Artefact(path, attributes, finished, rows.stat().st_mtime if finished else modified)


def _student(path: Path) -> Artefact | None:
    try:
        record = read_run(path)
    except DdxError:  # one folder that is damaged hides no other; `ddx list runs` shows it
        return None
    if record is None or record.get("kind", "student") != "student":
        return None
    return Artefact(path, record, bool(record.get("finished")), (path / "run.json").stat().st_mtime)
