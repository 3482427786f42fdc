"""Which folder a distillation writes to: a new one, or the unfinished one that the same command left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import UsageError
from ddx.run_record import read_run
from ddx.training.checkpoint import latest_checkpoint
from ddx.training.config import RESUMABLE_CHANGES
from ddx.workspace import Workspace, is_vacant

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class StudentFolder:
    """Where a student goes. `checkpoint` is where to go on from; `finished` means that nothing is left to do."""

    path: Path
    checkpoint: Path | None = None
    resumed: bool = False
    finished: bool = False


def choose_folder(
    out: Path | None, workspace: Workspace, settings: Mapping[str, Any], identity: Mapping[str, Any]
) -> StudentFolder:
    """Return the folder for a run of these settings (JSON values) and identity (teacher, method, store).

    Without `out`, an unfinished student of the same teacher and method is resumed, else a new folder is taken. With
    `out`, that folder is resumed or begun. Raises UsageError naming the first setting in which an unfinished run
    differs, and for an `out` that holds something else.
    """
    if out is None:
        path = _unfinished(workspace, identity)
        if path is None:
            return StudentFolder(workspace.new_student_path(str(identity["teacher"]), str(identity["method"])))
    else:
        path = out
        record = read_run(path)
        if record is None:
            if not is_vacant(path):
                raise UsageError(f"{path} exists and is not a student", hint="give another --out, or delete it")
            return StudentFolder(path)
        if record.get("finished"):
            _refuse_changes(path, record, settings, identity, "is finished")
            return StudentFolder(path, finished=True)
    record = read_run(path) or {}
    _refuse_changes(path, record, settings, identity, "is unfinished")
    return StudentFolder(path, latest_checkpoint(path / CHECKPOINTS), resumed=True)


def _unfinished(workspace: Workspace, identity: Mapping[str, Any]) -> Path | None:
    for student in workspace.students():
        same = all(student.record.get(key) == identity[key] for key in ("teacher", "method"))
        if same and not student.finished:
            return student.path
    return None


def _refuse_changes(
    path: Path, record: Mapping[str, Any], settings: Mapping[str, Any], identity: Mapping[str, Any], what: str
) -> None:
    before = record.get("config", {})
    for key, value in settings.items():
        if key in RESUMABLE_CHANGES:
            continue
        if key not in before or before[key] != value:
            raise UsageError(
                f"{path} {what} and was started with {key} = {before.get(key)}, not {value}",
                hint=f"give --set {key}={before.get(key)} to go on with it, or --out PATH for another student",
            )
    for key, value in identity.items():
        if record.get(key) != value:
            raise UsageError(
                f"{path} {what} and belongs to another {key.replace('_', ' ')}: {record.get(key)}, not {value}",
                hint="give --out PATH for another student",
            )
