"""Settings that a command line gives several values of: `--set dtype=float32,bf16` is two rows in place of one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_origin

from ddx.cli.options import Invocation
from ddx.config import Settings, field_types
from ddx.errors import UsageError
from ddx.values import SETS

ALLOWED = ("dtype", "resolution", "size", "seed", "sampler", "batch_size")


def split_sweep(invocation: Invocation, *classes: type[Any]) -> tuple[Invocation, dict[str, list[str]]]:
    """Return the invocation without the settings that have several values, and these values by setting.

    UsageError for a setting that pictures do not depend on. Lists, such as the numbers of steps, stay as they are.
    """
    kinds = {name: kind for cls in classes for name, kind in field_types(cls).items()}
    layers, varied = [], {}
    for layer in invocation.layers:
        kept: dict[str, Any] = {}
        for key, value in layer.items():
            name = str(key).replace("-", "_")
            several = layer.origin == SETS and isinstance(value, str) and "," in value if _named(layer) else False
            if several and name in kinds and get_origin(kinds[name]) is not tuple:
                if name not in ALLOWED:
                    raise UsageError(
                        f"--set {key}={value}: rows cannot differ in {name}", hint=f"they can in {', '.join(ALLOWED)}"
                    )
                varied[name] = [part.strip() for part in str(value).split(",") if part.strip()]
            else:
                kept[key] = value
        layers.append(Settings(kept, layer.origin) if _named(layer) else layer)
    return dataclasses.replace(invocation, layers=tuple(layers)), varied


def combinations(varied: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Yield every choice of one value a setting: one empty choice where nothing varies."""
    for values in itertools.product(*varied.values()):
        yield dict(zip(varied, values, strict=True))


def _named(layer: Any) -> bool:
    return isinstance(layer, Settings)
