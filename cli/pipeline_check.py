"""Whether the stages of a pipeline can work, before any of them runs: their settings, and who makes what who reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.cli.did_you_mean import key_hint
from ddx.cli.invocation import find_config
from ddx.cli.single_files import BASE
from ddx.cli.stages import POSITIONAL, Stage, as_list
from ddx.config import Settings, UnknownKeyError, build_many, read_yaml
from ddx.data.config import PrecomputeConfig
from ddx.errors import UsageError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.judged.config import JudgeConfig
from ddx.evaluation.measure_config import MeasureConfig
from ddx.export.config import AverageConfig
from ddx.sampling.config import SampleConfig
from ddx.scenes.config import ScenesConfig
from ddx.training.teacher.config import TeacherConfig
from ddx.workspace import Workspace

CONFIGS: Mapping[str, tuple[type[Any], ...]] = {
    "scenes": (ScenesConfig,),
    "train": (TeacherConfig,),
    "precompute": (PrecomputeConfig,),
    "average": (AverageConfig,),
    "sample": (SampleConfig,),
    "evaluate": (EvaluateConfig, MeasureConfig, JudgeConfig),
}
# What a stage needs, the setting that names it, and the stage that makes it.
NEEDS = {
    "prepare": ("a store", "data", "precompute"),
    "distill": ("a store", "data", "precompute"),
    "sample": ("a student", "student", "distill"),
}


def check(stages: Sequence[Stage], workspace: Workspace) -> None:
    """Raise UsageError for the first stage that could not run to its end: a wrong setting, or an input that is missing.

    An input may be there already, or be made by a stage before; one that a later stage makes is refused.
    """
    for number, stage in enumerate(stages, start=1):
        where = f"stage {number} (`{stage.name}`)"
        if stage.name in POSITIONAL and not stage.settings.get(POSITIONAL[stage.name]):
            raise UsageError(f"{where} has no `{POSITIONAL[stage.name]}`", hint=_EXAMPLES[stage.name])
        config, *_ = _check_settings(stage, where, workspace)
        if isinstance(config, AverageConfig):
            _check_average(config, as_list(stage.settings["students"]), where)
        _check_order(stage, where, stages[: number - 1], stages[number:])
        _check_needs(stage, where, stages[: number - 1], stages[number:], workspace)
    outputs: dict[Path, int] = {}
    for number, stage in enumerate(stages, start=1):
        if stage.output is not None and (first := outputs.setdefault(stage.output, number)) != number:
            raise UsageError(
                f"stages {first} and {number} both write {stage.output}", hint="give one of them another `out`"
            )


def _check_settings(stage: Stage, where: str, workspace: Workspace) -> Sequence[Any]:
    """Return the settings of a stage as its command would have them."""
    given = {
        key: value for key, value in stage.settings.items() if key not in ("config", BASE, POSITIONAL.get(stage.name))
    }
    layers = [workspace.settings(stage.name), Settings(given, where)]
    if config := stage.settings.get("config"):
        layers.insert(1, read_yaml(find_config(str(config))))
    try:
        return _resolver(stage.name)(layers)
    except UnknownKeyError as error:
        error.hint = key_hint(stage.name, error.key, error.names) or error.hint
        raise


def _resolver(name: str) -> Callable[[Sequence[Settings]], Sequence[Any]]:
    if name in CONFIGS:
        return lambda layers: build_many(CONFIGS[name], *layers)
    from ddx.training.resolve import resolve, resolve_preparation

    return resolve if name == "distill" else lambda layers: (resolve_preparation(layers),)


def _check_average(config: AverageConfig, students: Sequence[Any], where: str) -> None:
    """Raise UsageError for what `ddx average` would refuse after all the stages before it."""
    if len(students) < 2:
        raise UsageError(f"{where} has one student", hint=_EXAMPLES["average"])
    if config.weights and len(config.weights) != len(students):
        raise UsageError(
            f"{where} has {len(config.weights)} weights for {len(students)} students",
            hint="give one for each, or none for equal ones",
        )


def _check_order(stage: Stage, where: str, before: Sequence[Stage], after: Sequence[Stage]) -> None:
    made = {other.output for other in before}
    for path in stage.reads:
        late = next((other for other in after if other.output == path), None)
        if late is not None and path not in made:
            raise UsageError(
                f"{where} reads {path}, which `{late.name}` makes after it", hint=f"put `{late.name}` first"
            )
    for source in stage.sources:
        plain = not any(mark in source for mark in "*?[{") and "://" not in source
        if plain and Path(source) not in made and not Path(source).expanduser().exists():
            raise UsageError(
                f"{where} reads {source}, which does not exist", hint="check the path; a `scenes` stage can make one"
            )


def _check_needs(
    stage: Stage, where: str, before: Sequence[Stage], after: Sequence[Stage], workspace: Workspace
) -> None:
    need, key, maker = NEEDS.get(stage.name, ("", "", ""))
    if not need or key in stage.settings:  # it was named, or taken from a stage before
        return
    if any(other.name == maker for other in after):
        raise UsageError(
            f"{where} needs {need}, which `{maker}` makes after it",
            hint=f"put `{maker}` before `{stage.name}`, or name another one: `{key}: PATH`",
        )
    if (workspace.newest_store() if key == "data" else workspace.newest_student()) is None:
        raise UsageError(
            f"{where} needs {need}: no stage before it makes one, and {workspace.root} holds none",
            hint=f"put a `{maker}` stage before it, or name one: `{key}: PATH`",
        )


_EXAMPLES = {
    "precompute": "write `- precompute: {sources: [pairs.parquet]}`",
    "scenes": "write `- scenes: {out: pairs.parquet}`",
    "average": 'write `- average: {students: ["{student 1}", "{student 2}"], weights: [1, 4]}`',
}
