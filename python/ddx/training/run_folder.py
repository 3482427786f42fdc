"""Which folder a distillation writes to: a new one, or the unfinished one that the same command left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddx.checkpoints.folder import latest_checkpoint
from ddx.errors import UsageError
from ddx.run_record import read_run
from ddx.training.config import ADDED_SINCE, EXPLICIT_CHANGES, RESUMABLE_CHANGES
from ddx.workspace import Workspace, is_vacant

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunFolder:
    """Where a run goes on, and its student will be. `finished` means that nothing is left to do.

    `checkpoint`: where to go on from. `changes`: the settings that differ from those that it had, as (before, now).
    """

    path: Path
    checkpoint: Path | None = None
    resumed: bool = False
    finished: bool = False
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def choose_folder(
    out: Path | None,
    workspace: Workspace,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    said: Collection[str] = (),
) -> RunFolder:
    """Return the folder for a run of these settings (JSON values) and identity (teacher, method, store).

    `said` are the settings that the user named for this very run: with `out`, some of them may be others than before.

    Without `out`, an unfinished student of the same teacher and method is resumed, else a new folder is taken. With
    `out`, that folder is resumed or begun. Raises UsageError naming the first setting in which an unfinished run
    differs, and for an `out` that holds something else.
    """
    if out is None:
        path = unfinished(workspace, str(identity["teacher"]), str(identity["method"]))
        if path is None:
            return RunFolder(workspace.new_student_path(str(identity["teacher"]), str(identity["method"])))
    else:
        path = out
        record = read_run(path)
        if record is None:
            if not is_vacant(path):
                raise UsageError(f"{path} exists and is not a student", hint="give another --out, or delete it")
            return RunFolder(path)
        if record.get("finished"):
            changes = _changes(path, record, settings, identity, "is finished", said)
            return _extended(path, changes, settings) if changes else RunFolder(path, finished=True)
    record = read_run(path) or {}
    changes = _changes(path, record, settings, identity, "is unfinished", () if out is None else said)
    _require_extensible(path, changes, settings)
    return RunFolder(path, latest_checkpoint(path / CHECKPOINTS), resumed=True, changes=changes)


def _extended(path: Path, changes: Mapping[str, tuple[Any, Any]], settings: Mapping[str, Any]) -> RunFolder:
    """Return the folder of a finished run that goes on from its last state."""
    if "train_steps" not in changes:
        raise UsageError(f"{path} is finished: no step is left for {', '.join(changes)}", hint="add --train-steps N")
    _require_extensible(path, changes, settings)
    checkpoint = latest_checkpoint(path / CHECKPOINTS)
    if checkpoint is None:
        raise UsageError(
            f"{path} is finished and its checkpoints are gone: it cannot go on",
            hint=f"--from-student {path} --out PATH begins another student with its weights",
        )
    return RunFolder(path, checkpoint, resumed=True, changes=changes)


def _require_extensible(path: Path, changes: Mapping[str, tuple[Any, Any]], settings: Mapping[str, Any]) -> None:
    """Raise UsageError, saying what would change, where another number of steps changes more than the end of a run."""
    before, now = changes.get("train_steps", (0, 0))
    if now < before:
        raise UsageError(
            f"{path} was started with train_steps = {before}, and can be made longer, not shorter: {now}",
            hint=f"give --train-steps {before} to go on with it, or --out PATH for another student",
        )
    if now > before and settings["lr_schedule"] != "constant":
        raise cannot_extend(
            path, f"its {settings['lr_schedule']} learning rate falls to 0 at step {before}, and would at {now}"
        )


def cannot_extend(path: Path, why: str) -> UsageError:
    """Return the error for a run that a larger number of steps would have made another one."""
    return UsageError(
        f"{path} cannot be made longer: {why}",
        hint=f"--from-student {path} --out PATH begins another student with its weights",
    )


def unfinished(workspace: Workspace, teacher: str, method: str) -> Path | None:
    """Return the newest student of this teacher and method that is not finished, None if there is none."""
    for student in workspace.students():
        same = (student.record.get("teacher"), student.record.get("method")) == (teacher, method)
        if same and not student.finished:
            return student.path
    return None


def _changes(
    path: Path,
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    what: str,
    said: Collection[str],
) -> dict[str, tuple[Any, Any]]:
    """Return what differs from the record and may; UsageError for the first that may not."""
    before: dict[str, Any] = {**ADDED_SINCE, **record.get("config", {})}
    changes: dict[str, tuple[Any, Any]] = {}
    for key, value in settings.items():
        if key in RESUMABLE_CHANGES:
            continue
        if key in before and before[key] == value:
            continue
        if key in EXPLICIT_CHANGES and key in said:
            changes[key] = (before.get(key), value)
            continue
        anew = f"; --out {path} --set {key}={value} goes on with the new one" if key in EXPLICIT_CHANGES else ""
        raise UsageError(
            f"{path} {what} and was started with {key} = {before.get(key)}, not {value}",
            hint=f"give --set {key}={before.get(key)} to go on with it, or --out PATH for another student{anew}",
        )
    for key, value in identity.items():
        if record.get(key) != value:
            raise UsageError(
                f"{path} {what} and belongs to another {key.replace('_', ' ')}: {record.get(key)}, not {value}",
                hint="give --out PATH for another student",
            )
    return changes
