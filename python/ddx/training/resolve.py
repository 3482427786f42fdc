"""From layers of settings to the configs of a distillation: the method's own keys and the preset included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.config import Settings, build, build_many, field_types
from ddx.errors import UsageError
from ddx.methods.registry import METHODS, method_spec
from ddx.teachers.prepared import prepared_record
from ddx.teachers.registry import teacher_key
from ddx.training.config import DistillConfig
from ddx.training.prepare_config import PrepareConfig
from ddx.training.presets import preset_for

if TYPE_CHECKING:
    from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig


def resolve(layers: Sequence[Settings]) -> tuple[DistillConfig, Any, AddedDiscriminatorConfig | None]:
    """Return the trainer's config, the method's, and that of a discriminator if one may be added; later layers win.

    Under all of them lie the preset, and under that what the method itself wants of the trainer.

    The config names the preset that was taken, or "none". Raises UsageError for an unknown method, preset or key, for a
    key of another method, and for values out of their range.
    """
    values = _flat(layers)
    method = method_spec(str(values.get("method", DistillConfig.method)))
    preset, settings = _preset(values, method.name)
    for layer in layers:
        _refuse_other_methods(layer, method.name, method.configs)
    defaults = Settings(method.method.defaults, f"the defaults of {method.name}")
    config, method_config, *added = build_many((DistillConfig, *method.configs), defaults, settings, *layers)
    config = dataclasses.replace(config, preset=preset or "none", teacher=teacher_key(config.teacher))
    return config, method_config, added[0] if added else None


def resolve_preparation(layers: Sequence[Settings]) -> PrepareConfig:
    """Return the config of a preparation; later layers win, and under all of them lies the preset.

    Raises UsageError for an unknown preset or key, and for values out of their range.
    """
    preset, settings = _preset(_flat(layers), "preparation")
    own = {key: value for key, value in settings.items() if key in field_types(PrepareConfig)}
    config = build(PrepareConfig, Settings(own, settings.origin), *layers)
    return dataclasses.replace(config, preset=preset or "none", teacher=teacher_key(config.teacher))


def _flat(layers: Sequence[Settings]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for layer in layers for key, value in layer.items()}


def _preset(values: Mapping[str, Any], method: str) -> tuple[str | None, Settings]:
    """Return the preset's name and settings; a prepared teacher takes those of the one that it was made of."""
    teacher = str(values.get("teacher", DistillConfig.teacher))
    record = prepared_record(Path(teacher).expanduser())
    if record is not None:
        teacher = str(record["prepared_from"])
    return preset_for(teacher, method, str(values.get("preset", DistillConfig.preset)))


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
