"""One frozen dataclass a stage holds its settings; YAML, `--set key=value` and flags all end up in `build`.

@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    steps: int = option(1, "network evaluations for one picture")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))

build(SampleConfig, read_yaml("settings.yaml"), parse_sets(["steps=4"]))       # later mappings win
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ddx.errors import UsageError, nearest

Config = TypeVar("Config")
REQUIRED: Any = dataclasses.MISSING


class Settings(dict[str, Any]):
    """A mapping that remembers where it was read from, so that an error can name the place."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        super().__init__(values)
        self.origin = origin


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
    metavar: str | None = None,
) -> Any:
    """Return a dataclass field that the command line can show: its meaning and, where it is a closed set, its values.

    `default` may be `REQUIRED`. `flag` replaces the flag made from the field's name; "" gives the field no flag at all.
    """
    metadata = {"help": help, "choices": choices, "flag": flag, "metavar": metavar}
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
        place = f" in {mapping.origin}" if isinstance(mapping, Settings) else ""
        for key, value in mapping.items():
            name = str(key).replace("-", "_")
            if name not in owners:
                raise unknown_key(str(key), tuple(owners), place)
            cls = owners[name]
            field = next(field for field in dataclasses.fields(cls) if field.name == name)
            kind = field_types(cls)[name]
            values[cls][name] = _checked(name, _convert(name, value, kind, place), field.metadata.get("choices"), place)
    for cls in classes:
        for field in dataclasses.fields(cls):
            no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if no_default and field.name not in values[cls]:
                flag = "--" + field.name.replace("_", "-")
                raise UsageError(f"{flag} is missing: {field.metadata.get('help', field.name)}", hint=f"add {flag} …")
    return tuple(cls(**values[cls]) for cls in classes)


def unknown_key(key: str, names: Sequence[str], place: str = "") -> UsageError:
    """Return the error for a key that is not one of `names`."""
    near = nearest(key, tuple(names))
    hint = f"did you mean `{near}`?" if near else "known keys: " + ", ".join(sorted(names))
    return UsageError(f"unknown key `{key}`{place}", hint=hint)


def field_types(cls: type[Any]) -> dict[str, Any]:
    """Return the resolved type of every field of a dataclass, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def read_yaml(path: str | Path) -> Settings:
    """Return the mapping in a YAML file (an empty file is an empty mapping)."""
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read {path}: {reason}", hint="check the path, or leave --config away") from error
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
    return Settings(values, "--set")


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


def _checked(name: str, value: Any, choices: tuple[str, ...] | None, place: str) -> Any:
    if choices is None or value is None:
        return value
    for item in value if isinstance(value, tuple) else (value,):
        if item not in choices:
            near = nearest(str(item), choices) if len(str(item)) > 3 else None  # `gpu` is not a slip for `cpu`
            cure = f"did you mean `{near}`?" if near else "one of: " + ", ".join(choices)
            raise UsageError(f"{name} = {item!r}{place}: not one of {', '.join(choices)}", hint=cure)
    return value


def _convert(name: str, value: Any, kind: Any, place: str) -> Any:
    """Return `value` as `kind`, one of int, float, bool, str, Path, Literal, X | None, tuple[X, ...], dict."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null", "")):
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        for candidate in kinds[:-1]:
            try:
                return _convert(name, value, candidate, place)
            except UsageError:
                continue
        return _convert(name, value, kinds[-1], place)
    if origin is typing.Literal:
        return _checked(name, str(value), tuple(str(argument) for argument in arguments), place)
    if origin in (tuple, list):
        items = list(value) if isinstance(value, list | tuple) else [value]
        if arguments[0] is not str:  # 1,2,4; a text may hold commas of its own, so texts come one by one
            items = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        return tuple(_convert(name, item, arguments[0], place) for item in items if item != "")
    if origin is dict or kind is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise _wrong_type(name, value, "a mapping", place)
    return _convert_scalar(name, value, kind, place)


def _convert_scalar(name: str, value: Any, kind: Any, place: str) -> Any:
    if kind is Any:
        return value
    if kind is bool:
        text = str(value).strip().lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if text in ("false", "no", "off", "0"):
            return False
        raise _wrong_type(name, value, "true or false", place)
    if isinstance(value, bool | list | tuple | Mapping) or value is None:
        if kind is str and isinstance(value, bool):
            return str(value).lower()
        raise _wrong_type(name, value, _in_words(kind), place)
    if kind is int:
        try:
            number = float(value) if not isinstance(value, int) else value
            if int(number) == number:
                return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else int(number)
        except (ValueError, OverflowError):
            pass
        raise _wrong_type(name, value, "a whole number", place)
    if kind is float:
        try:
            return float(value)
        except ValueError:
            raise _wrong_type(name, value, "a number", place) from None
    if kind is Path:
        return Path(str(value)).expanduser()
    if kind is str:
        return str(value)
    raise TypeError(f"{name}: a config field of type {kind} has no conversion")


def _wrong_type(name: str, value: Any, expected: str, place: str) -> UsageError:
    return UsageError(
        f"{name} = {value!r}{place}: {expected} is expected", hint=f"for example --set {name}={_example(expected)}"
    )


def _in_words(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(kind, str(kind))


def _example(expected: str) -> str:
    examples = {"a whole number": "8", "a number": "0.5", "true or false": "true", "a path": "some/folder"}
    return examples.get(expected, "…")
