"""From layers of settings to the configs of a distillation: the method's own keys and the preset included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.config import Settings, build, build_many, field_types
from ddx.errors import UsageError
from ddx.methods.registry import METHODS, method_spec
from ddx.run_record import read_run
from ddx.teachers.registry import teacher_key
from ddx.training.batch_scaling import follow_batch
from ddx.training.config import DistillConfig
from ddx.training.prepare_config import PrepareConfig
from ddx.training.preset_file import Preset
from ddx.training.presets import preset_for, preset_names
from ddx.training.recipe import Recipe
from ddx.training.run_folder import unfinished

if TYPE_CHECKING:
    from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
    from ddx.workspace import Workspace

FORMER_KEYS = ("resolution",)  # that presets no longer have: a family's teachers are of several sizes


def resolve(
    layers: Sequence[Settings], workspace: Workspace | None = None
) -> tuple[DistillConfig, Any, AddedDiscriminatorConfig | None]:
    """Return what `resolve_recipe` does, without sources: the trainer's config, the method's, the discriminator's."""
    recipe = resolve_recipe(layers, workspace)
    return recipe.config, recipe.method_config, recipe.discriminator


def resolve_recipe(layers: Sequence[Settings], workspace: Workspace | None = None) -> Recipe:
    """Return the trainer's config, the method's, and that of a discriminator if one may be added; later layers win.

    Under all of them lie the preset, and under that what the method itself wants of the trainer. A run of `workspace`
    that these settings go on with keeps the preset that it began with.

    The config names the preset that was taken, or "none". Raises UsageError for an unknown method, preset or key, for a
    key of another method, and for values out of their range.
    """
    values = _flat(layers)
    method = method_spec(str(values.get("method", DistillConfig.method)))
    preset = _preset_of_run(values, method.name, workspace) or _preset(values, method.name)
    for layer in layers:
        _refuse_other_methods(layer, method.name, method.configs)
    defaults = Settings(method.method.defaults, f"the defaults of {method.name}")
    config, method_config, *added = build_many((DistillConfig, *method.configs), defaults, preset.settings, *layers)
    config = dataclasses.replace(config, preset=preset.name or "none", teacher=teacher_key(config.teacher))
    recipe_batch = int(preset.settings.get("batch_size", defaults.get("batch_size", DistillConfig.batch_size)))
    config, chosen = follow_batch(config, recipe_batch, values)
    return Recipe(
        config=config,
        method_config=method_config,
        discriminator=added[0] if added else None,
        preset=preset,
        method_defaults=tuple(defaults),
        layers=layers,
        chosen=chosen,
    )


def resolve_preparation(layers: Sequence[Settings]) -> PrepareConfig:
    """Return the config of a preparation; later layers win, and under all of them lies the preset.

    Raises UsageError for an unknown preset or key, and for values out of their range.
    """
    preset = _preset(_flat(layers), "preparation")
    own = {key: value for key, value in preset.settings.items() if key in field_types(PrepareConfig)}
    config = build(PrepareConfig, Settings(own, preset.settings.origin), *layers)
    return dataclasses.replace(config, preset=preset.name or "none", teacher=teacher_key(config.teacher))


def _flat(layers: Sequence[Settings]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for layer in layers for key, value in layer.items()}


def _preset(values: Mapping[str, Any], method: str) -> Preset:
    teacher = str(values.get("teacher", DistillConfig.teacher))
    return preset_for(teacher, method, str(values.get("preset", DistillConfig.preset)))


def _preset_of_run(values: Mapping[str, Any], method: str, workspace: Workspace | None) -> Preset | None:
    """Return the preset of the run that goes on, as it was then; None for a new run, or where a preset is named.

    Presets come and change with versions of ddx, and a run keeps the settings that it began with.
    """
    if workspace is None or str(values.get("preset", "auto")) != "auto":
        return None
    teacher, out = teacher_key(str(values.get("teacher", DistillConfig.teacher))), values.get("out")
    path = unfinished(workspace, teacher, method) if out in (None, "none") else Path(str(out))
    record = read_run(path) if path is not None else None
    if record is None or (record.get("teacher"), record.get("method")) != (teacher, method):
        return None
    name = str(record.get("config", {}).get("preset", "none"))
    now = preset_for(teacher, method, name) if name in ("none", *preset_names()) else None
    recorded = record.get("preset_settings")
    if recorded is None:  # of a version that recorded the preset's name alone
        if now is None:
            return None
        recorded = {key: value for key, value in record["config"].items() if key in (*now.settings, *FORMER_KEYS)}
    then = Settings(recorded, f"preset {name}")
    if now is None:
        return Preset(name=name, settings=then)
    source = {key: text for key, text in now.source.items() if now.settings.get(key) == then.get(key)}
    return Preset(name=now.name, title=now.title, settings=then, works=now.works, source=source)


def _refuse_other_methods(layer: Settings, method: str, own: Sequence[type[Any]]) -> None:
    known = {*field_types(DistillConfig), *(name for cls in own for name in field_types(cls))}
    for key in layer:
        name = str(key).replace("-", "_")
        if name in known:
            continue
        owners = owners_of(name)
        if owners:
            raise of_another_method(f"`{key}` in {layer.origin}", owners, method)


def owners_of(name: str) -> list[str]:
    """Return the methods that have a setting of this name; imports all of them."""
    return [spec.name for spec in METHODS.values() if any(name in field_types(cls) for cls in spec.configs)]


def of_another_method(what: str, owners: Sequence[str], method: str) -> UsageError:
    """Return the error for a setting that `owners` have and `method` has not."""
    named = ", ".join(owners) if len(owners) <= 4 else f"{', '.join(owners[:3])} and {len(owners) - 3} more"
    return UsageError(
        f"{what} is a setting of {named}, not of {method}", hint=f"leave it away, or use --method {owners[0]}"
    )
