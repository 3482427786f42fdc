"""How a command was called: its settings in layers, where they may be kept, and how it is to speak."""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ddx
from ddx.config import Settings, build_many
from ddx.errors import UsageError, nearest
from ddx.values import FLAGS, SETS
from ddx.workspace import Workspace

if typing.TYPE_CHECKING:
    from ddx.progress import Progress

Config = TypeVar("Config")
PRESETS = Path(ddx.__file__).parent / "presets"  # not beside this file, which a checkout only links into the package


@dataclass(frozen=True)
class Invocation:
    """What a command was called with: its settings in layers, and how it is to speak."""

    command: str
    workspace: Workspace
    layers: tuple[Settings, ...]
    as_json: bool = False
    quiet: bool = False
    dry_run: bool = False
    debug: bool = False
    _progress: list[Progress] = field(default_factory=list, repr=False)

    @property
    def values(self) -> dict[str, Any]:
        """Everything that was set, the layers merged; keys that nobody set are absent."""
        return {str(key).replace("-", "_"): value for layer in self.layers for key, value in layer.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """Return what `key` was set to, before any conversion: for choices that decide which config to build."""
        return self.values.get(key, default)

    @property
    def said(self) -> frozenset[str]:
        """The settings that the line itself names, by flag or --set."""
        named = (layer for layer in self.layers if layer.origin in (FLAGS, SETS))
        return frozenset(str(key).replace("-", "_") for layer in named for key in layer)

    def build(self, config_class: type[Config], **more: Any) -> Config:
        """Return the resolved config; `more` wins over every layer (None values are left out)."""
        return typing.cast(Config, self.build_many(config_class, **more)[0])

    def build_many(self, *config_classes: type[Any], **more: Any) -> tuple[Any, ...]:
        """Return one config a class from keys that share one namespace."""
        given = Settings({key: value for key, value in more.items() if value is not None}, "the arguments")
        return build_many(config_classes, *self.layers, given)

    def loading(self, what: str) -> None:
        """Say what takes the next seconds, before torch is imported; of several processes the first one says it."""
        if os.environ.get("RANK", "0") == "0":
            self.progress.log(f"loading {what} …")

    @property
    def progress(self) -> Progress:
        """The progress display that fits the terminal, one for the whole command."""
        if not self._progress:
            from ddx.cli.displays import make_progress

            self._progress.append(make_progress(quiet=self.quiet, as_json=self.as_json))
        return self._progress[0]


def find_config(name: str) -> Path:
    """Return the path of a config: a file, or one of the presets that come with ddx by its bare name."""
    path, preset = Path(name).expanduser(), PRESETS / f"{name}.yaml"
    if path.is_file() or not preset.is_file():
        if not path.is_file():
            presets = tuple(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
            near = nearest(name, presets)
            known = f"the presets are {', '.join(presets)}" if presets else "there are no presets"
            hint = f"did you mean the preset `{near}`?" if near else f"give a YAML file; {known}"
            raise UsageError(f"no config file {name}", hint=hint)
        return path
    return preset
