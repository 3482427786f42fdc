"""Values of settings: text from a flag, from `--set` or from YAML, converted to the type of a config's field."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import UsageError, nearest

FLAGS, SETS = "the flags", "--set"  # origins whose settings have a spelling of their own; all others are YAML
EXACT = 2**53  # whole numbers below it survive as a float, which 1e4 is read as


@dataclass(frozen=True)
class Setting:
    """One setting: its name, where it was given, and a value that it could have."""

    name: str
    origin: str | None = None
    example: Any = None

    def written(self, value: Any) -> str:
        """Return how the setting with this value is written where it was given."""
        text = _text(value)
        if self.origin == FLAGS:
            return f"--{self.name.replace('_', '-')} {text}"
        return f"{self.name}: {text}" if self.origin not in (None, SETS) else f"--set {self.name}={text}"

    def given(self, value: Any) -> str:
        """Return the setting as an error names it."""
        if self.origin == FLAGS:
            return self.written(value)
        return f"{self.name} = {value!r}" + (f" in {self.origin}" if self.origin else "")


def convert(setting: Setting, value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, one of int, float, bool, str, Path, Literal, X | None, tuple[X, ...], dict.

    A whole number may be written 20000, 20_000 or 2e4. UsageError for what is not of the kind.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null", "")):
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        for candidate in kinds[:-1]:
            try:
                return convert(setting, value, candidate)
            except UsageError:
                continue
        return convert(setting, value, kinds[-1])
    if origin is typing.Literal:
        return check_choice(setting, str(value), tuple(str(argument) for argument in arguments))
    if origin in (tuple, list):
        items = list(value) if isinstance(value, list | tuple) else [] if value == "" else [value]
        if arguments[0] is not str:  # 1,2,4; a text may hold commas of its own, so texts come one by one
            parts = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
            items = [part for part in parts if part != ""]
        return tuple(convert(setting, item, arguments[0]) for item in items)
    if origin is dict or kind is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise wrong_type(setting, value, "a mapping")
    return _scalar(setting, value, kind)


def check_choice(setting: Setting, value: Any, choices: tuple[str, ...] | None) -> Any:
    """Return `value` if all of it is one of `choices`; UsageError with the nearest one if it is not."""
    if choices is None or value is None:
        return value
    for item in value if isinstance(value, tuple) else (value,):
        if item not in choices:
            near = nearest(str(item), choices) if len(str(item)) > 3 else None  # `gpu` is not a slip for `cpu`
            cure = f"did you mean `{near}`?" if near else "one of: " + ", ".join(choices)
            raise UsageError(f"{setting.given(item)}: not one of {', '.join(choices)}", hint=cure)
    return value


def wrong_type(setting: Setting, value: Any, expected: str) -> UsageError:
    """Return the error for a value of another type; its hint is what was probably meant, or the setting's default."""
    meant = _meant(str(value)) if expected in ("a whole number", "a number") else None
    if meant is not None and not (expected == "a whole number" and "." in meant):
        return UsageError(f"{setting.given(value)}: {expected} is expected", hint=f"write {setting.written(meant)}")
    example = setting.example if setting.example not in (None, "", ()) else _EXAMPLES.get(expected, "…")
    return UsageError(f"{setting.given(value)}: {expected} is expected", hint=f"for example {setting.written(example)}")


def _scalar(setting: Setting, value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    if kind is bool:
        text = str(value).strip().lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if text in ("false", "no", "off", "0"):
            return False
        raise wrong_type(setting, value, "true or false")
    if isinstance(value, bool | list | tuple | Mapping) or value is None:
        if kind is str and isinstance(value, bool):
            return str(value).lower()
        raise wrong_type(setting, value, _KINDS.get(kind, str(kind)))
    if kind is int:
        return _whole(setting, value)
    if kind is float:
        try:
            return float(value)
        except ValueError:
            raise wrong_type(setting, value, "a number") from None
    if kind is Path:
        return Path(str(value)).expanduser()
    if kind is str:
        return str(value)
    raise TypeError(f"{setting.name}: a config field of type {kind} has no conversion")


def _whole(setting: Setting, value: Any) -> int:
    try:
        return int(value) if isinstance(value, int | str) else _from_float(value)
    except ValueError:
        pass
    try:
        return _from_float(float(value))
    except (ValueError, OverflowError):
        raise wrong_type(setting, value, "a whole number") from None


def _from_float(number: float) -> int:
    if not number.is_integer() or abs(number) >= EXACT:
        raise ValueError(number)
    return int(number)


def _meant(text: str) -> str | None:
    """Return the number that was probably meant by 10k, 1,000, 0,5, 50%, 1/4, 30s or 512x512."""
    text = text.strip().lower().replace(" ", "")
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([km])", text):
        return f"{float(found[1]) * {'k': 1e3, 'm': 1e6}[found[2]]:.15g}"
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
        return text.replace(",", "")
    if re.fullmatch(r"\d+,\d+", text):
        return text.replace(",", ".")
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)%", text):
        return f"{float(found[1]) / 100:.6g}"
    if (found := re.fullmatch(r"(\d+)/(\d+)", text)) and int(found[2]):
        return f"{int(found[1]) / int(found[2]):.6g}"
    if (found := re.fullmatch(r"(\d+)[x*×](\d+)", text)) and found[1] == found[2]:
        return found[1]
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)(px|s|sec|seconds|steps|gb|mb)", text):
        return found[1] if found[2] not in ("gb", "mb") else None
    return None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", Path: "a path"}
_EXAMPLES = {"a whole number": "8", "a number": "0.5", "true or false": "true", "a path": "some/folder"}
