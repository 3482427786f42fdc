"""Where the tensors of a denoiser of diffusers are in its authors' checkpoints, which ComfyUI's networks follow.

A family declares it as tables of names. Some of its tensors are there several in one, along the first dimension
(queries, keys and values); some have their halves in the other order, shift and scale. This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Entry = str | tuple[str, int]
"""The name there, or the name and which of the tensors in it. Of a layer, its weight and bias included, or of one
tensor where the keys are whole names."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """The tensors of diffusers, in order, that are one tensor of the original."""

    parts: tuple[str, ...]
    swapped: bool

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the original's shape, of the shapes of diffusers' tensors."""
        first = shapes[self.parts[0]]
        return (sum(shapes[part][0] for part in self.parts), *first[1:]) if len(self.parts) > 1 else first


@dataclass(frozen=True, kw_only=True)
class OriginalNames:
    """The names of one family, and how its files are told from others."""

    marks: tuple[str, ...]
    """Tensors that all its files have, and together no other family's."""
    ends: Mapping[str, Entry] = field(default_factory=dict)
    """What lies outside the blocks."""
    blocks: Mapping[str, tuple[str, Mapping[str, Entry]]] = field(default_factory=dict)
    """By diffusers' list of blocks: the list there, and the names in a block of it."""
    others_stay: bool = False
    """Whether what the tables leave out has diffusers' name there too."""
    swapped: tuple[str, ...] = ()
    """Layers of diffusers whose halves are in the other order; `{last}` is the last block's number."""
    bases: Mapping[str, Mapping[str, Shape | bool]] = field(default_factory=dict)
    """The named teachers whose configs a file takes, by the shapes of tensors, or whether it has them."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """A tensor of the original, and what a file without it holds."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """A part of a tensor's name, and what a file that has such a tensor holds."""
    unread: tuple[str, ...] = ()
    """Tensors of the original that diffusers' network does without."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Where its text encoders are in the files that hold them, by part: the prefix to transformers' names."""
    unwritable: str | None = None
    """Why a student cannot be written in this layout, None where it can."""

    def comfyui_layer(self, name: str) -> tuple[str, int]:
        """Return the layer of ComfyUI's network that a layer of diffusers is in, and its place in it.

        KeyError for one that has no place.
        """
        found, part = self._find(name) or self._stays(name)
        return f"diffusion_model.{found}", part

    def _tensor(self, name: str) -> tuple[str, int]:
        """The tensor there that a tensor of diffusers is in, and its place in it."""
        if (whole := self._find(name)) is not None:
            return whole
        layer, _, kind = name.rpartition(".")
        if (found := self._find(layer)) is not None:
            return f"{found[0]}.{kind}", found[1]
        return self._stays(name)

    def _find(self, name: str) -> tuple[str, int] | None:
        """What the tables say of a name, in a block or outside."""
        entry, before = self.ends.get(name), ""
        pieces = name.split(".", 2)
        if len(pieces) == 3 and pieces[0] in self.blocks:
            there, table = self.blocks[pieces[0]]
            entry, before = table.get(pieces[2]), f"{there}.{pieces[1]}."
        if entry is None:
            return None
        found, part = (entry, 0) if isinstance(entry, str) else entry
        return before + found, part

    def _stays(self, name: str) -> tuple[str, int]:
        if not self.others_stay:
            raise KeyError(name)
        return name, 0

    def stacks(self, names: Iterable[str]) -> dict[str, Stack]:
        """Return what the original tensors are made of, for all tensors of a network. KeyError for one without."""
        names = list(names)
        places: dict[str, dict[int, str]] = {}
        for name in names:
            found, part = self._tensor(name)
            places.setdefault(found, {})[part] = name
        layers = self._swapped_layers(names)
        stacks = {}
        for found, by_part in places.items():
            parts = tuple(by_part[part] for part in range(len(by_part)))
            stacks[found] = Stack(parts, parts[0].rpartition(".")[0] in layers)
        return stacks

    def _swapped_layers(self, names: Iterable[str]) -> set[str]:
        blocks = next(iter(self.blocks), "")
        numbers = [int(name.split(".")[1]) for name in names if name.startswith(f"{blocks}.")] if blocks else []
        return {layer.format(last=max(numbers, default=0)) for layer in self.swapped}


AS_DIFFUSERS = OriginalNames(marks=(), others_stay=True)


def stacked(original: str, *layers: str) -> dict[str, Entry]:
    """Return the entries of layers that are one there."""
    return {layer: (original, part) for part, layer in enumerate(layers)}
