"""Tensors from diffusers' names into those of the authors' checkpoints, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ddx.teachers.parts.original_names import OriginalNames, Shape, Stack


def joined(stack: Stack, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the original tensor of some tensors of diffusers, which are stacked along the first dimension."""
    tensors = [weights[name] for name in stack.parts]
    whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return _swap(whole) if stack.swapped else whole


def split(stack: Stack, tensor: Tensor, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """Yield diffusers' tensors of an original one, of these shapes. They share no memory with each other."""
    if len(stack.parts) == 1:
        yield stack.parts[0], _swap(tensor) if stack.swapped else tensor
        return
    for name, part in zip(stack.parts, tensor.split([shapes[name][0] for name in stack.parts]), strict=True):
        yield name, part.clone()


def renamed(
    original: OriginalNames, state: Mapping[str, Tensor], shapes: Mapping[str, Shape], prefix: str
) -> dict[str, Tensor]:
    """Return the tensors behind a prefix under diffusers' names; those that do not fit keep the names that they have.

    `shapes` are those of diffusers' network.
    """
    left = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    found: dict[str, Tensor] = {}
    for name, stack in original.stacks(shapes).items():
        if name in left and tuple(left[name].shape) == stack.shape(shapes):
            found.update(split(stack, left.pop(name), shapes))
    return {**found, **{name: value for name, value in left.items() if name not in original.unread}}


def _swap(tensor: Tensor) -> Tensor:
    """Shift and scale in the other order."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
