"""What this process holds of a tensor: all of it, or its share of one that is spread over ranks (a DTensor)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


class Share(NamedTuple):
    """A tensor that is the part of a whole which begins at `offset`: an index for each dimension."""

    local: Tensor
    offset: Sequence[int]


class Spread(Protocol):
    """A whole tensor that lies in several places, as in the files of several ranks."""

    shape: torch.Size
    dtype: torch.dtype

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return the part that begins at `offset`; only that is read."""


def share_of(value: Tensor) -> Share:
    """Return what this process holds of `value`, live: writing to it writes to `value`."""
    value = value.detach()
    if not isinstance(value, DTensor):
        return Share(value, [0] * value.dim())
    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return Share(value.to_local(), offset)


def part_of(saved: Tensor | Spread, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the part of a whole tensor that begins at `offset`: of one in memory, or mapped into it, a view."""
    if not isinstance(saved, Tensor):
        return saved.part(offset, shape)
    for dim, (start, size) in enumerate(zip(offset, shape, strict=True)):
        if size != saved.shape[dim]:
            saved = saved.narrow(dim, start if size else 0, size)
    return saved


def whole(saved: Tensor | Spread) -> Tensor:
    """Return all of a saved tensor."""
    return part_of(saved, [0] * len(saved.shape), saved.shape)


@torch.no_grad()
def copy_into(live: Tensor, saved: Tensor | Spread) -> None:
    """Write a whole tensor into one that this process holds all or a share of. RuntimeError for another shape."""
    if live.shape != saved.shape:
        raise RuntimeError(f"a tensor of shape {list(saved.shape)} does not fit one of {list(live.shape)}")
    local, offset = share_of(live)
    local.copy_(share_of(saved).local if isinstance(saved, DTensor) else part_of(saved, offset, local.shape))


def copy_all_into(live: Mapping[str, Tensor], saved: Mapping[str, Tensor | Spread]) -> None:
    """Write tensors into those of the same names. KeyError if one is missing."""
    for name, value in live.items():
        try:
            copy_into(value, saved[name])
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from None


def restored(saved: Tensor | Spread, parameter: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a value that an optimiser keeps of `parameter`: spread and laid out like it if of its shape.

    Fused kernels walk through memory, so moments need their parameter's layout.
    """
    if saved.shape != parameter.shape:
        return (share_of(saved).local if isinstance(saved, DTensor) else whole(saved)).to(device, copy=True)
    value = torch.empty_like(parameter.detach(), dtype=saved.dtype, device=device)
    copy_into(value, saved)
    return value
