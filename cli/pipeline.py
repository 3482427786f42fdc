"""The stages of a pipeline: command lines that know each other's outputs, run once and remembered."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ddx.cli.displays import make_progress, progress_for_people
from ddx.cli.single_files import BASE
from ddx.config import parse_sets, read_yaml
from ddx.errors import DdxError, UsageError, nearest
from ddx.run_record import FILE_NAME, read_run, write_run
from ddx.teachers.registry import teacher_key
from ddx.workspace import Workspace, slug

KEPT = ("train", "precompute", "prepare", "distill")  # their commands go on with what is there
STUDENT = "{student}"  # of the distill stage before, as `from_student`
STAGES = ("scenes", "train", "precompute", "prepare", "distill", "sample", "evaluate")
WITH_TEACHER = ("precompute", "prepare", "distill", "evaluate")
BESIDE_REAL = {
    "reference",
    "pictures",
    "protocol",
    "metrics",
    "benchmark",
}  # of evaluate: a teacher only if it is named
INPUTS = ("teacher", "data", "student", "from_student")  # settings that may name what another stage made


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
        return [str(source) for source in _as_list(self.settings.get("sources"))]

    def command_line(self) -> str:
        """Return what a user would type."""
        return shlex.join(["ddx", self.name, *self.arguments])


def read_pipeline(path: Path, *, workspace: Path | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Return (command, settings) of every stage in a pipeline file; `{workspace}` in a value is the workspace's folder.

    Raises UsageError where the file is malformed.
    """
    content = read_yaml(path)
    example = "write `stages:`, then one `- command: {key: value}` a stage"
    for key in content:
        if key != "stages":
            near = nearest(str(key), ("stages",))
            raise UsageError(f"unknown key `{key}` in {path}", hint=f"did you mean `{near}`?" if near else example)
    entries = content.get("stages")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{path} lists no stages", hint=example)
    stages = []
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            raise UsageError(f"stage {number} in {path} is not `command: settings`", hint=example)
        ((name, settings),) = entry.items()
        if name not in STAGES:
            near = nearest(str(name), STAGES)
            known = "stages are " + ", ".join(STAGES)
            raise UsageError(f"unknown stage `{name}` in {path}", hint=f"did you mean `{near}`?" if near else known)
        if not isinstance(settings or {}, dict):
            raise UsageError(f"the settings of stage {number} (`{name}`) are not a mapping", hint=example)
        root = str(workspace) if workspace is not None else "{workspace}"
        stages.append((str(name), {key: _filled(value, root) for key, value in (settings or {}).items()}))
    return stages


def _filled(value: Any, root: str) -> Any:
    if isinstance(value, list):
        return [_filled(item, root) for item in value]
    return value.replace("{workspace}", root) if isinstance(value, str) else value


class Runner:
    """Runs stages in this process, one after another; <workspace>/pipelines/<name>/ remembers what each did."""

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        *,
        as_json: bool = False,
        quiet: bool = False,
        debug: bool = False,
        again: bool = False,
    ) -> None:
        self.workspace, self.name = workspace, slug(name)
        self.debug, self.again = debug, again
        self.as_json, self.quiet = as_json, quiet

    def resolve(self, entries: Sequence[tuple[str, dict[str, Any]]]) -> list[Stage]:
        """Return the stages with their outputs chosen and their inputs taken from the stages before them."""
        stages: list[Stage] = []
        student = None
        stores: dict[str, Path] = {}  # by teacher, and so are the students
        students: dict[str, Path] = {}
        teacher, base = "sana-600m", None
        for number, (name, given) in enumerate(entries, start=1):
            settings, reads = dict(given), list[Path]()
            if "teacher" in settings:
                teacher, base = str(settings["teacher"]), settings.get(BASE) or settings.get(BASE.replace("_", "-"))
            elif name in WITH_TEACHER and not (name == "evaluate" and BESIDE_REAL & settings.keys()):
                settings |= {"teacher": teacher} | ({BASE: base} if base else {})
            if settings.get("from_student") == STUDENT:
                if student is None:
                    raise UsageError(
                        f"stage {number} (`{name}`) goes on from the student of a stage before it, and there is none",
                        hint="put a distill stage before it, or name a student",
                    )
                settings["from_student"] = student
            key = teacher_key(settings.get("teacher", teacher))
            if name in ("prepare", "distill") and stores and "data" not in settings:
                if key not in stores:
                    raise UsageError(
                        f"stage {number} (`{name}`) has the teacher {settings['teacher']}, and the stages before it "
                        f"make stores of {', '.join(stores)}",
                        hint="put a precompute stage of that teacher before it, or name a store: `data: PATH`",
                    )
                settings["data"] = stores[key]
            if name in ("sample", "evaluate") and student is not None and "student" not in settings:
                settings["student"] = students.get(key, student) if name == "evaluate" else student
            output = self._output(name, number, settings)
            if "out" not in settings:
                output = _untaken(output, [stage.output for stage in stages])
            if name in (*WITH_TEACHER, "sample") and output is not None:
                settings.setdefault("out", output)
            reads += [Path(str(settings[key])) for key in INPUTS if key in settings]
            reads += [Path(source) for source in _as_list(settings.get("sources"))]
            if name == "precompute" and output is not None:
                stores[key] = output
            if name == "prepare":
                teacher, base = str(output), None
                if key in stores:
                    stores[teacher_key(teacher)] = stores[key]
            if name == "distill" and output is not None:
                student = students[key] = output
            stages.append(Stage(name, tuple(_arguments(name, settings)), output, tuple(reads), settings))
        return stages

    def is_done(self, stage: Stage) -> bool:
        """Return whether the stage ran to its end with these arguments, and its output is still there."""
        record = read_run(self._folder(stage))
        if self.again or record is None or not record.get("finished"):
            return False
        return record.get("arguments") == list(stage.arguments) and (stage.output is None or stage.output.exists())

    def run(self, stages: Sequence[Stage]) -> list[dict[str, Any]]:
        """Run what is not done, and every stage that reads something made anew. Raises click.Exit where one fails."""
        results: list[dict[str, Any]] = []
        made: set[Path] = set()
        for number, stage in enumerate(stages, start=1):
            if self.is_done(stage) and not made.intersection(stage.reads):
                self._say(f"[{number}/{len(stages)}] {stage.name}: done before, skipped")
                record = read_run(self._folder(stage)) or {}
                results.append({**record, "skipped": True})
                continue
            self._say(f"[{number}/{len(stages)}] {stage.command_line()}")
            self._set_aside(stage)
            began = time.monotonic()
            result = self._run_stage(stage)
            if stage.output is not None:
                made.add(stage.output)
            record = {
                "kind": "stage",
                "stage": stage.name,
                "arguments": list(stage.arguments),
                "output": str(stage.output) if stage.output else None,
                "seconds": round(time.monotonic() - began, 1),
                "result": result,
            }
            write_run(self._folder(stage), record, finished=True)
            results.append({**record, "skipped": False})
        return results

    def _set_aside(self, stage: Stage) -> None:
        """Rename what a stage has finished before and makes anew: stores and students are never overwritten."""
        record, output = read_run(self._folder(stage)), stage.output
        if stage.name not in KEPT or record is None or output is None or not output.is_dir():
            return
        number = 1
        while (former := output.with_name(f"{output.stem}-{number}{output.suffix}")).exists():
            number += 1
        output.rename(former)
        (self._folder(stage) / FILE_NAME).unlink()  # stopped from here on, the stage goes on with its own
        self._say(f"made anew; the former one is kept as {former}")

    def _run_stage(self, stage: Stage) -> Any:
        """Run one command in this process and return the JSON that it printed."""
        from ddx.cli import main

        arguments = [stage.name, *stage.arguments, "--workspace", str(self.workspace.root), "--json"]
        arguments += ["--quiet"] * self.quiet + ["--debug"] * self.debug
        printed = io.StringIO()
        progress = contextlib.nullcontext() if self.as_json else progress_for_people()
        with contextlib.redirect_stdout(printed), progress:
            code = main.run(arguments)
        if code != 0:
            raise click.exceptions.Exit(code)
        try:
            return json.loads(printed.getvalue() or "null")
        except ValueError as error:
            raise DdxError(f"`ddx {stage.name} --json` did not print JSON", hint="please report this") from error

    def _output(self, name: str, number: int, settings: dict[str, Any]) -> Path | None:
        if settings.get("out"):
            return Path(str(settings["out"]))
        root = self.workspace.root
        if name == "precompute":
            sources = _as_list(settings.get("sources")) or ["data"]
            return (
                root / "data" / f"{slug(Path(str(sources[0])).stem)}-{slug(str(settings['teacher']))}-{self.name}.zarr"
            )
        if name == "train":
            return self.workspace.teacher_path("sana-tiny")
        if name == "prepare":
            return self.workspace.teacher_path(str(settings["teacher"]), f"prepared-{self.name}")
        if name == "distill":
            method = slug(str(settings.get("method", "lcm")))
            return root / "students" / f"{slug(Path(str(settings['teacher'])).name)}-{method}-{self.name}"
        if name == "sample":
            return root / "samples" / f"{self.name}-{number}"
        if name == "evaluate":
            return self.workspace.report_path(f"{self.name}-{number}")
        return None

    def _folder(self, stage: Stage) -> Path:
        where = stage.output.name if stage.output is not None else "output"
        return self.workspace.root / "pipelines" / self.name / f"{stage.name}-{slug(where)}"

    def _say(self, message: str) -> None:
        make_progress(quiet=self.quiet, as_json=self.as_json).log(message)


def _untaken(path: Path | None, taken: Sequence[Path | None]) -> Path | None:
    """Return the path, with a number where a stage before writes it already."""
    number, free = 2, path
    while free is not None and path is not None and free in taken:
        number, free = number + 1, path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _arguments(name: str, settings: dict[str, Any]) -> list[str]:
    """Return the command-line arguments of a stage: positional ones bare, the rest as --set key=value."""
    positional = {"precompute": "sources", "scenes": "out"}.get(name)
    arguments: list[str] = []
    for key, value in settings.items():
        key = str(key).replace("-", "_")
        if key == positional:
            arguments += [str(item) for item in _as_list(value)]
        elif key in ("config", "prompt"):
            arguments += [part for item in _as_list(value) for part in (f"--{key}", str(item))]
        elif value is not None:
            text = json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
            parse_sets([f"{key}={text}"])
            arguments += ["--set", f"{key}={text}"]
    return arguments
