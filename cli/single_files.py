"""`--teacher model.safetensors`: the folder that a checkpoint becomes takes its place in the settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ddx.cli.invocation import Invocation
from ddx.cli.suggestions import bases
from ddx.config import Settings
from ddx.errors import UsageError
from ddx.teachers.unknown import is_single_file

BASE = "teacher_base"

base_option = click.option(
    "--teacher-base",
    BASE,
    metavar="NAME|PATH",
    help="Of a --teacher in one file: whose configs, tokenizers and missing parts it takes (none: told by its shapes).",
    shell_complete=bases,
)


def with_teacher_folder(invocation: Invocation, base: str | None) -> Invocation:
    """Return the invocation with a folder in place of a teacher in one file, which is converted where it is new.

    The base, of the line or of a layer, is no setting of the stage, and is taken out of the layers.
    """
    found = invocation.values
    base = base or found.get(BASE)
    layers = [_without_base(layer) for layer in invocation.layers]
    teacher = found.get("teacher")
    single = None if teacher is None or not is_single_file(str(teacher)) else Path(str(teacher)).expanduser()
    if base is not None and single is None:
        raise UsageError(
            f"--teacher-base {base} is for a --teacher in one file, and {teacher or 'none'} is given",
            hint="leave --teacher-base away, or give --teacher MODEL.safetensors",
        )
    if single is not None:
        from ddx.teachers.single_file import teacher_folder

        root = invocation.workspace.root / "teachers"
        folder = teacher_folder(single, base=base, root=root, progress=invocation.progress)
        layers = [_with_teacher(layer, str(folder)) for layer in layers]
    return dataclasses.replace(invocation, layers=tuple(layers))


def _without_base(layer: Settings) -> Settings:
    kept: dict[str, Any] = {key: value for key, value in layer.items() if str(key).replace("-", "_") != BASE}
    return Settings(kept, layer.origin)


def _with_teacher(layer: Settings, folder: str) -> Settings:
    return Settings({key: folder if key == "teacher" else value for key, value in layer.items()}, layer.origin)
