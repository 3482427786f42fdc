"""Checkpoints: tensors as safetensors, everything else as JSON, complete or not there.

    <student>/checkpoints/step-000500/<group>.safetensors …, state.json

A checkpoint is written into a hidden folder, flushed to the disk, and renamed. A process killed at any moment leaves
complete checkpoints and hidden rubbish, which the next one to write removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddx.errors import DdxError, cannot_write

_NAME = re.compile(r"step-(\d{6,})")
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: tensors by group and name, and the state around them."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, step: int, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `folder`/step-N and delete all but the newest `keep`. DdxError if the disk does not take it."""
    target = folder / f"step-{step:06d}"
    hidden = folder / f".step-{step:06d}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for rubbish in folder.glob(".*"):
            shutil.rmtree(rubbish, ignore_errors=True)
        hidden.mkdir()
        for group, tensors in snapshot.tensors.items():
            path = hidden / f"{group}.safetensors"
            save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, path)
            _flush(path)
        (hidden / STATE_FILE).write_text(json.dumps(dict(snapshot.state), indent=1), encoding="utf-8")
        _flush(hidden / STATE_FILE)
        _flush(hidden)
        if target.exists():  # a run that was resumed from before it
            _remove(target)
        os.rename(hidden, target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if not isinstance(error, OSError):  # safetensors puts the system's error into words
            number = re.search(r"os error (\d+)", str(error))
            error = OSError(int(number[1]) if number else 0, str(error))
        raise cannot_write(f"the checkpoint {target}", error) from error
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, the oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint folder is named after."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint")
    return int(match[1])


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return next(iter(reversed(list_checkpoints(folder))), None)


def load_checkpoint(path: Path) -> Snapshot:
    """Return what `save_checkpoint` wrote, tensors on the CPU. DdxError for a damaged one."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise DdxError(
            f"the checkpoint {path} is damaged: {error}", hint=f"delete {path} to resume from the one before it"
        ) from error
    return Snapshot(tensors, state)


def _remove(path: Path) -> None:
    """Delete a checkpoint, hidden first: killed half-way through, it must not look complete."""
    hidden = path.with_name(f".{path.name}.old")
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file or a folder to the disk, so that the rename never outruns it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
