"""Pipelines: a YAML file of stages, each of which is run once and remembered."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ddx.cli.displays import make_progress, progress_for_people
from ddx.cli.stages import STAGES, Stage, resolve
from ddx.config import read_yaml
from ddx.errors import DdxError, UsageError, nearest
from ddx.run_record import FILE_NAME, read_run, write_run
from ddx.workspace import Workspace, slug

KEPT = ("train", "precompute", "prepare", "distill", "average")  # what they made is never overwritten


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
        return resolve(entries, self.workspace, self.name)

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

    def _folder(self, stage: Stage) -> Path:
        where = stage.output.name if stage.output is not None else "output"
        return self.workspace.root / "pipelines" / self.name / f"{stage.name}-{slug(where)}"

    def _say(self, message: str) -> None:
        make_progress(quiet=self.quiet, as_json=self.as_json).log(message)
