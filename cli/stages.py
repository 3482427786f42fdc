"""The stages of a pipeline as commands: where each writes, and which outputs of the stages before it each reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddx.cli.single_files import BASE
from ddx.config import parse_sets
from ddx.errors import UsageError
from ddx.teachers.registry import teacher_key
from ddx.workspace import Workspace, slug

STAGES = ("scenes", "train", "precompute", "prepare", "distill", "average", "sample", "evaluate")
WITH_TEACHER = ("precompute", "prepare", "distill", "evaluate")
WITH_STUDENT = ("distill", "average")  # they make one
# Settings of evaluate beside real pictures: a teacher only if it is named.
BESIDE_REAL = {"reference", "pictures", "protocol", "metrics", "benchmark"}
INPUTS = ("teacher", "data", "student", "from_student")  # settings that may name what another stage made
POSITIONAL = {"precompute": "sources", "scenes": "out", "average": "students"}  # arguments without a flag
STUDENT = re.compile(r"\{student(?: (\d+))?\}")  # of the last stage before that makes one, or of the N-th


@dataclass(frozen=True)
class Stage:
    """One command with its arguments. `output` is the file or folder that must exist for the stage to be done."""

    name: str
    arguments: tuple[str, ...]
    output: Path | None
    reads: tuple[Path, ...] = field(default=())
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """What a precompute stage reads."""
        return [str(source) for source in as_list(self.settings.get("sources"))]

    def command_line(self) -> str:
        """Return what a user would type."""
        return shlex.join(["ddx", self.name, *self.arguments])


def resolve(entries: Sequence[tuple[str, dict[str, Any]]], workspace: Workspace, name: str) -> list[Stage]:
    """Return the stages of the pipeline `name`. Raises UsageError for a student or store that none of them makes."""
    made = _Made()
    return [
        made.add(number, command, {str(key).replace("-", "_"): value for key, value in given.items()}, workspace, name)
        for number, (command, given) in enumerate(entries, start=1)
    ]


@dataclass
class _Made:
    """What the stages so far make."""

    outputs: list[Path | None] = field(default_factory=list)
    students: list[Path] = field(default_factory=list)
    student_of: dict[str, Path] = field(default_factory=dict)  # the last one by teacher, and so are the stores
    store_of: dict[str, Path] = field(default_factory=dict)
    teacher_of: dict[Path, str] = field(default_factory=dict)
    teacher: str = "sana-600m"
    base: Any = None  # of a teacher that is a single file

    def add(self, number: int, name: str, settings: dict[str, Any], workspace: Workspace, pipeline: str) -> Stage:
        """Return the stage with what it takes from those before it, and keep what it makes."""
        where = f"stage {number} (`{name}`)"
        self._give_teacher(name, settings)
        for key in ("from_student", "student", "students"):
            if key in settings:
                settings[key] = self._named(settings[key], where)
        key = teacher_key(settings.get("teacher", self.teacher))
        if name == "average":
            key = next((of for path in as_list(settings.get("students")) if (of := self.teacher_of.get(path))), key)
        self._give_inputs(name, key, settings, where)
        output = _output(workspace, pipeline, name, number, settings)
        if "out" not in settings:
            output = _untaken(output, self.outputs)
        if name in (*WITH_TEACHER, "average", "sample") and output is not None:
            settings.setdefault("out", output)
        reads = [settings[setting] for setting in INPUTS if setting in settings]
        reads += [*as_list(settings.get("sources")), *as_list(settings.get("students"))]
        self._keep(name, key, output)
        return Stage(
            name, tuple(_arguments(name, settings)), output, tuple(Path(str(path)) for path in reads), settings
        )

    def _give_teacher(self, name: str, settings: dict[str, Any]) -> None:
        if "teacher" in settings:
            self.teacher, self.base = str(settings["teacher"]), settings.get(BASE)
        elif name in WITH_TEACHER and not (name == "evaluate" and BESIDE_REAL & settings.keys()):
            settings |= {"teacher": self.teacher} | ({BASE: self.base} if self.base else {})

    def _named(self, value: Any, where: str) -> Any:
        """Return the student that `{student}` or `{student N}` stands for, in a list too; other values as they are."""
        if isinstance(value, list):
            return [self._named(item, where) for item in value]
        found = STUDENT.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value
        if not self.students:
            raise UsageError(
                f"{where} takes the student of a stage before it, and there is none",
                hint="put a distill stage before it, or name a student",
            )
        number = int(found[1] or len(self.students))
        if not 1 <= number <= len(self.students):
            raise UsageError(
                f"{where} takes {value}, and the stages before it make {len(self.students)}",
                hint=f'for example "{{student {len(self.students)}}}", the last one',
            )
        return self.students[number - 1]

    def _give_inputs(self, name: str, key: str, settings: dict[str, Any], where: str) -> None:
        if name in ("prepare", "distill") and self.store_of and "data" not in settings:
            if key not in self.store_of:
                raise UsageError(
                    f"{where} has the teacher {settings['teacher']}, and the stages before it make stores of "
                    f"{', '.join(self.store_of)}",
                    hint="put a precompute stage of that teacher before it, or name a store: `data: PATH`",
                )
            settings["data"] = self.store_of[key]
        if name in ("sample", "evaluate") and self.students and "student" not in settings:
            last = self.students[-1]
            settings["student"] = self.student_of.get(key, last) if name == "evaluate" else last

    def _keep(self, name: str, key: str, output: Path | None) -> None:
        self.outputs.append(output)
        if output is None:
            return
        if name == "precompute":
            self.store_of[key] = output
        if name == "prepare":
            self.teacher, self.base = str(output), None
            if key in self.store_of:
                self.store_of[teacher_key(self.teacher)] = self.store_of[key]
        if name in WITH_STUDENT:
            self.student_of[key], self.teacher_of[output] = output, key
            self.students.append(output)


def _output(workspace: Workspace, pipeline: str, name: str, number: int, settings: dict[str, Any]) -> Path | None:
    """Return where a stage writes: a folder of its kind in the workspace, by the pipeline's name."""
    if settings.get("out"):
        return Path(str(settings["out"]))
    root = workspace.root
    if name == "precompute":
        sources = as_list(settings.get("sources")) or ["data"]
        return root / "data" / f"{slug(Path(str(sources[0])).stem)}-{slug(str(settings['teacher']))}-{pipeline}.zarr"
    if name == "train":
        return workspace.teacher_path("sana-tiny")
    if name == "prepare":
        return workspace.teacher_path(str(settings["teacher"]), f"prepared-{pipeline}")
    if name == "distill":
        method = slug(str(settings.get("method", "lcm")))
        return root / "students" / f"{slug(Path(str(settings['teacher'])).name)}-{method}-{pipeline}"
    if name == "average":
        return root / "students" / f"average-{pipeline}"
    if name == "sample":
        return root / "samples" / f"{pipeline}-{number}"
    if name == "evaluate":
        return workspace.report_path(f"{pipeline}-{number}")
    return None


def _untaken(path: Path | None, taken: Sequence[Path | None]) -> Path | None:
    """Return the path, with a number where a stage before writes it already."""
    number, free = 2, path
    while free is not None and path is not None and free in taken:
        number, free = number + 1, path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def as_list(value: Any) -> list[Any]:
    """Return the items of a list, or the value alone; none for None."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _arguments(name: str, settings: dict[str, Any]) -> list[str]:
    """Return the command-line arguments of a stage: positional ones bare, the rest as --set key=value."""
    positional = POSITIONAL.get(name)
    arguments: list[str] = []
    for key, value in settings.items():
        if key == positional:
            arguments += [str(item) for item in as_list(value)]
        elif key in ("config", "prompt"):
            arguments += [part for item in as_list(value) for part in (f"--{key}", str(item))]
        elif value is not None:
            text = json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
            parse_sets([f"{key}={text}"])
            arguments += ["--set", f"{key}={text}"]
    return arguments
