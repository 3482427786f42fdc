"""Checkpoints: tensors as safetensors, everything else as JSON, complete or not there.

    <student>/checkpoints/step-000500/<group>.safetensors …, state.json

A checkpoint is written into a hidden folder, flushed to the disk, and renamed. A process killed at any moment leaves
complete checkpoints and hidden rubbish, which the next one to write removes. Which files several ranks write:
:mod:`ddx.checkpoints.files`; how a run saves while it goes on: :mod:`ddx.training.saver`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ddx.checkpoints.files import INDEX_FILE, Damaged, own_pieces, read_tensors, write_pieces
from ddx.checkpoints.shares import Spread
from ddx.errors import DdxError, cannot_write
from ddx.run_record import sync

_NAME = re.compile(r"step-(\d{6,})")
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: tensors by group and name, and the state around them."""

    tensors: Mapping[str, Mapping[str, Tensor | Spread]]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Snapshot(Saved):
    """What a checkpoint is to hold: live tensors, whole ones or this rank's shares."""

    tensors: Mapping[str, Mapping[str, Tensor]]


def save_checkpoint(folder: Path, step: int, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `folder`/step-N, alone, and delete all but the newest `keep`. DdxError if the disk does not take it."""
    hidden = hidden_folder(folder, step, str(os.getpid()))
    sweep(folder, but=hidden)
    with told(folder, step):
        hidden.mkdir(parents=True, exist_ok=True)
        write_pieces(hidden, own_pieces(snapshot.tensors, 0, 1), 0, 1)
    put_in_place(hidden, folder, step, snapshot.state)
    retire(folder, keep)
    sweep(folder)
    return named(folder, step)


def named(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"step-{step:06d}"


def hidden_folder(folder: Path, step: int, writer: str) -> Path:
    """Return where `writer`, a name of this run of the program, writes the checkpoint of a step."""
    return folder / f".step-{step:06d}.{writer}"


@contextmanager
def told(folder: Path, step: int) -> Iterator[None]:
    """Within, a disk that does not take the checkpoint of a step is a DdxError that says so, with the cure."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not isinstance(error, OSError):  # safetensors puts the system's error into words
            found = re.search(r"os error (\d+)", str(error))
            error = OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(0, str(error))
        raise cannot_write(f"the checkpoint {named(folder, step)}", error) from error


def put_in_place(
    hidden: Path, folder: Path, step: int, state: Mapping[str, Any], index: Mapping[str, Any] | None = None
) -> None:
    """Give a hidden folder with all its tensors the rest, and its name. DdxError, and it is gone, if that fails.

    index: of several ranks' files, see :func:`~ddx.checkpoints.files.index_of`.
    """
    try:
        with told(folder, step):
            for name, content in ((INDEX_FILE, index), (STATE_FILE, dict(state))):
                if content is not None:
                    (hidden / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
                    sync(hidden / name)
            sync(hidden)
            if named(folder, step).exists():  # a run that was resumed from before it
                _hide(named(folder, step))
            os.rename(hidden, named(folder, step))
            sync(folder)
    except DdxError:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def retire(folder: Path, keep: int) -> None:
    """Hide all but the newest `keep` checkpoints, for `sweep`."""
    for old in list_checkpoints(folder)[:-keep]:
        _hide(old)


def sweep(folder: Path, but: Path | None = None) -> None:
    """Delete what is hidden in `folder`: what was retired, and what a kill left half written."""
    for rubbish in folder.glob(".*"):
        if rubbish != but:
            shutil.rmtree(rubbish, ignore_errors=True)


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


def load_checkpoint(path: Path) -> Saved:
    """Return what was saved, by however many ranks; tensors are read from the disk as they are used.

    DdxError for a damaged one, here or, see `or_damaged`, as they are used.
    """
    with or_damaged(path):
        try:
            state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Damaged(f"{STATE_FILE}: {error}") from error
        return Saved(read_tensors(path), state)


@contextmanager
def or_damaged(path: Path) -> Iterator[None]:
    """Within, a file of the checkpoint at `path` that cannot be read is a DdxError with the way back."""
    try:
        yield
    except Damaged as error:
        raise DdxError(
            f"the checkpoint {path} is damaged: {error}", hint=f"delete {path} to resume from the one before it"
        ) from error


def _hide(path: Path) -> None:
    """Let a checkpoint not be one any more: killed while it deletes it, a process leaves none that looks complete."""
    os.rename(path, path.with_name(f".{path.name}.old"))
