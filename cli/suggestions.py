"""What the shell offers behind a flag: names that ddx knows, what the workspace holds, and files. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ddx.cli.invocation import PRESETS
from ddx.workspace import Workspace

Suggest = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
FILE, FOLDER = "file", "dir"  # of a CompletionItem: the shell's own completion of paths


def suggestions(name: str, kind: Any, choices: tuple[str, ...] | None) -> Suggest:
    """Return the function that completes the setting `name` of this type, for click's `shell_complete`."""
    if choices:
        return _of(lambda _: choices)
    if name in _NAMED:
        return _NAMED[name]
    if name == "out":
        return _of(lambda _: (), otherwise=FOLDER)
    return _of(lambda _: (), otherwise=FILE if kind is Path else None)


def _of(names: Callable[[Workspace], Iterable[str]], *, otherwise: str | None = None) -> Suggest:
    """Complete one of `names`; paths by the shell where none of them fits."""

    def suggest(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        workspace = Workspace(context.params.get("workspace"))
        found = [name for name in names(workspace) if name.startswith(incomplete)]
        found = found or [name for name in names(workspace) if incomplete and Path(name).name.startswith(incomplete)]
        if found or otherwise is None:
            return [CompletionItem(name) for name in found]
        return [CompletionItem(incomplete, type=otherwise)]

    return suggest


def _methods(_: Workspace) -> Iterable[str]:
    from ddx.methods.registry import METHODS

    return METHODS


def _teachers(workspace: Workspace) -> Iterable[str]:
    from ddx.teachers.registry import TEACHERS

    made = workspace.root / "teachers"
    folders = sorted(path.parent for path in made.glob("*/model_index.json"))
    return [*TEACHERS, *map(str, folders)]


def _students(workspace: Workspace) -> Iterable[str]:
    return [str(student.path) for student in workspace.students()]


def _stores(workspace: Workspace) -> Iterable[str]:
    return [str(store.path) for store in workspace.stores()]


def _presets(_: Workspace) -> Iterable[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _tuned(_: Workspace) -> Iterable[str]:
    return ["auto", "none", *sorted(path.stem for path in (PRESETS / "distill").glob("*.yaml"))]


def _statuses(_: Workspace) -> Iterable[str]:
    from ddx.data.config import STATUSES

    return ["all", *STATUSES]


def _anything(workspace: Workspace) -> Iterable[str]:
    return [*_stores(workspace), *_students(workspace), *_teachers(workspace)]


def suggest_keys(names: Iterable[str]) -> Suggest:
    """Complete the keys of --set; their values are left to the user."""
    keys = [f"{name}=" for name in names]
    return _of(lambda _: keys)


def _bases(_: Workspace) -> Iterable[str]:
    from ddx.teachers.families.table import FAMILIES
    from ddx.teachers.registry import TEACHERS

    families = [family.name for family in FAMILIES if family.original_text or family.original_names]
    return [spec.name for spec in TEACHERS.values() if spec.family in families]


stores, what, configs = _of(_stores, otherwise=FOLDER), _of(_anything, otherwise=FOLDER), _of(_presets, otherwise=FILE)
bases = _of(_bases, otherwise=FOLDER)
students = _of(_students, otherwise=FOLDER)
files, folders = _of(lambda _: (), otherwise=FILE), _of(lambda _: (), otherwise=FOLDER)

_NAMED: dict[str, Suggest] = {
    "method": _of(_methods),
    "teacher": _of(_teachers, otherwise=FOLDER),
    "student": students,
    "from_student": students,
    "data": stores,
    "preset": _of(_tuned),
    "retry": _of(_statuses),
    "device": _of(lambda _: ("auto", "cpu", "cuda", "cuda:0")),
}
