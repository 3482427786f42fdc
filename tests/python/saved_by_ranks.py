"""Checkpoints as several ranks write them, made by one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddx.checkpoints.files import Tensors, index_of, own_pieces, write_pieces
from ddx.checkpoints.folder import hidden_folder, named, put_in_place
from ddx.checkpoints.shares import Share


def rows(value: Tensor, rank: int, world: int) -> Share:
    """What a rank has of a tensor whose rows are dealt as FSDP does: the last ranks may have fewer, or none."""
    size = -(-value.shape[0] // world)
    first = min(rank * size, value.shape[0])
    return Share(value[first : first + size], [first] + [0] * (value.dim() - 1))


def save_by_ranks(
    folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], world: int, spread: tuple[str, ...] = ()
) -> Path:
    """Write `folder`/step-N as `world` ranks do that share the rows in the groups `spread`, and have all of others."""
    hidden, files = hidden_folder(folder, step, "test"), {}
    hidden.mkdir(parents=True)
    for rank in range(world):
        pieces = own_pieces(tensors, rank, world)
        for group in spread:
            pieces[group] = {name: rows(value, rank, world) for name, value in tensors[group].items()}
        files |= write_pieces(hidden, pieces, rank, world)
    put_in_place(hidden, folder, step, state, {**index_of(tensors), "files": files})
    return named(folder, step)
