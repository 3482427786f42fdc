"""Settings that a command line gives several values of: `--set dtype=float32,bf16` is two rows in place of one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddx.cli.invocation import Invocation
from ddx.config import Settings, field_types
from ddx.values import SETS

ALLOWED = ("dtype", "resolution", "size", "seed", "sampler", "batch_size")


def split_sweep(invocation: Invocation, *classes: type[Any]) -> tuple[Invocation, dict[str, list[str]]]:
    """Return the invocation without the settings that have several values, and these values by setting.

    Only settings that pictures depend on may vary so; lists, such as the numbers of steps, stay as they are.
    """
    known = {name for cls in classes for name in field_types(cls)}.intersection(ALLOWED)
    layers: list[Settings] = []
    varied: dict[str, list[str]] = {}
    for layer in invocation.layers:
        kept = Settings({}, layer.origin)
        for key, value in layer.items():
            name = str(key).replace("-", "_")
            if layer.origin == SETS and name in known and isinstance(value, str) and "," in value:
                varied[name] = [part.strip() for part in value.split(",") if part.strip()]
            else:
                kept[key] = value
        layers.append(kept)
    return dataclasses.replace(invocation, layers=tuple(layers)), varied


def combinations(varied: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Yield every choice of one value a setting: one empty choice where nothing varies."""
    for values in itertools.product(*varied.values()):
        yield dict(zip(varied, values, strict=True))
