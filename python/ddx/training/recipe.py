"""A resolved recipe beside its source: each setting with its value and where that is from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddx.config import Settings, to_dict
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.training.config import DistillConfig
from ddx.training.preset_file import Preset
from ddx.values import FLAGS


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run, resolved, and the layers that they were resolved from."""

    config: DistillConfig
    method_config: Any
    discriminator: AddedDiscriminatorConfig | None
    preset: Preset
    method_defaults: Collection[str]
    layers: Sequence[Settings]
    chosen: Mapping[str, str] = field(default_factory=dict)  # what a flag for something else decided, and why

    @property
    def decided(self) -> frozenset[str]:
        """The settings that the user gave."""
        return frozenset(str(key).replace("-", "_") for layer in self.layers for key in layer)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, the method's and the discriminator's included, as JSON can hold them."""
        parts = (self.config, self.method_config, *([self.discriminator] if self.discriminator else []))
        return {key: value for part in parts for key, value in to_dict(part).items()}

    @property
    def origins(self) -> dict[str, str]:
        """Where each setting's value is from: `published: …`, `yours: --flag`, or `ddx: …`."""
        said = {str(key).replace("-", "_"): layer.origin for layer in self.layers for key in layer}
        return {key: self._origin(key, said) for key in self.settings}

    def _origin(self, key: str, said: Mapping[str, str]) -> str:
        if key in self.chosen:
            return f"ddx: {self.chosen[key]}"
        if key in said:
            return f"yours: --{key.replace('_', '-')}" if said[key] == FLAGS else f"yours: {said[key]}"
        if key == "preset" and self.preset.name is not None:
            return "ddx: found for the teacher and the method"
        departure = self.preset.departures.get(key)
        if departure is not None:
            return f"ddx: {departure.reason} (published: {departure.published})"
        if key in self.preset.settings:
            citation = self.preset.citation(key)
            return f"published: {citation}" if citation else f"ddx: preset {self.preset.name}"
        return f"ddx: default of {self.config.method}" if key in self.method_defaults else "ddx: default"
