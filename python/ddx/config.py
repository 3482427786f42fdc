"""One frozen dataclass a stage holds its settings; YAML, `--set key=value` and flags all end up in `build`.

@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    steps: int = option(1, "network evaluations for one picture")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))

build(SampleConfig, read_yaml("settings.yaml"), parse_sets(["steps=4"]))       # later mappings win
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddx.errors import UsageError, nearest
from ddx.values import SETS, Setting, check_choice, convert

Config = TypeVar("Config")
REQUIRED: Any = dataclasses.MISSING


class Settings(dict[str, Any]):
    """A mapping that remembers where it was read from, so that an error can name the place."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        super().__init__(values)
        self.origin = origin


class UnknownKeyError(UsageError):
    """A key that is not one of `names`; the hint is the nearest one."""

    def __init__(self, key: str, names: Sequence[str], origin: str | None = None) -> None:
        near = nearest(key, tuple(names))
        hint = f"did you mean `{near}`?" if near else "known keys: " + ", ".join(sorted(names))
        super().__init__(f"unknown key `{key}`" + (f" in {origin}" if origin else ""), hint=hint)
        self.key, self.names = key, tuple(names)


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    example: Any = None,
) -> Any:
    """Return a dataclass field that the command line can show: its meaning and, where it is a closed set, its values.

    `default` may be `REQUIRED`. `flag` replaces the flag made from the field's name; "" gives the field no flag at all.
    `example` is shown where a value of the wrong type was given, in place of the default.
    """
    metadata = {"help": help, "choices": choices, "flag": flag, "metavar": metavar, "example": example}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: type[Config], *mappings: Mapping[str, Any]) -> Config:
    """Return a `cls` from the mappings, the later ones winning.

    Raises UsageError for an unknown key (with the nearest valid one), a value of the wrong type or out of its choices,
    and a required key that nobody gave.
    """
    (config,) = build_many((cls,), *mappings)
    return typing.cast(Config, config)


def build_many(classes: Sequence[type[Any]], *mappings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return one instance of each class from flat mappings that hold the keys of all of them together."""
    owners = {name: cls for cls in reversed(classes) for name in field_types(cls)}
    values: dict[type[Any], dict[str, Any]] = {cls: {} for cls in classes}
    for mapping in mappings:
        origin = mapping.origin if isinstance(mapping, Settings) else None
        for key, value in mapping.items():
            name = str(key).replace("-", "_")
            if name not in owners:
                raise UnknownKeyError(str(key), tuple(owners), origin)
            cls = owners[name]
            field = next(field for field in dataclasses.fields(cls) if field.name == name)
            setting = Setting(name, origin, _example(field))
            converted = convert(setting, value, field_types(cls)[name])
            values[cls][name] = check_choice(setting, converted, field.metadata.get("choices"))
    for cls in classes:
        for field in dataclasses.fields(cls):
            no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if no_default and field.name not in values[cls]:
                flag = "--" + field.name.replace("_", "-")
                raise UsageError(f"{flag} is missing: {field.metadata.get('help', field.name)}", hint=f"add {flag} …")
    return tuple(cls(**values[cls]) for cls in classes)


def field_types(cls: type[Any]) -> dict[str, Any]:
    """Return the resolved type of every field of a dataclass, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _example(field: dataclasses.Field[Any]) -> Any:
    example = field.metadata.get("example")
    return field.default if example is None and field.default is not dataclasses.MISSING else example


def read_yaml(path: str | Path) -> Settings:
    """Return the mapping in a YAML file (an empty file is an empty mapping)."""
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"cannot read {path}: {reason}", hint="check the path; a YAML file of `key: value` lines is read"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UsageError(f"{path}{line}: {problem}", hint="write one `key: value` a line") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a mapping", hint="write one `key: value` a line")
    return Settings(content, str(path))


def parse_sets(pairs: Sequence[str]) -> Settings:
    """Return {key: value} from `key=value` strings. Scalars stay text, which `build` converts to the field's type."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {pair}: that is not KEY=VALUE", hint="for example --set batch_size=8")
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError:
            parsed = text
        values[key.strip()] = parsed if isinstance(parsed, list | dict) else text
    return Settings(values, SETS)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the fields of a config as values that JSON can hold: paths become text, tuples lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return to_dict(value) if dataclasses.is_dataclass(value) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
