"""The tensor files of a checkpoint: which rank writes what, and how a rank finds its part of what others wrote.

    <group>.safetensors                     one process: whole tensors
    <group>.<rank>-of-<world>.safetensors   several: what that rank wrote, and in its header where each piece begins
    index.json                              several: the dtype and shape of each tensor, the size of each file

The pieces of a tensor do not overlap, so any number of ranks, however they share the tensors, can read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from ddx.checkpoints.shares import Share, Spread, part_of, share_of
from ddx.run_record import sync

INDEX_FILE = "index.json"
SUFFIX = ".safetensors"
SMALL = 2**20  # bytes: what is smaller, and on every rank, the first one writes, so that it is found in few files
_OF_RANK = re.compile(r"(.+)\.(\d+)-of-(\d+)")


class Damaged(Exception):
    """A file of a checkpoint is not there, or not as it was written; the text names it."""


Tensors = Mapping[str, Mapping[str, Tensor]]  # by group and name


def own_pieces(tensors: Tensors, rank: int, world: int) -> dict[str, dict[str, Share]]:
    """Return what this rank is to write, live: each element of each tensor is in the pieces of one rank.

    Of what every rank has, which is equal there, each writes about the same number of bytes.
    """
    written = [0] * world
    found: dict[str, dict[str, Share]] = {}
    for number, (group, name, value) in enumerate((g, n, v) for g, named in tensors.items() for n, v in named.items()):
        size = value.numel() * value.element_size()
        if isinstance(value, DTensor):
            own = _writes(value, 0 if size < SMALL else number)
        else:
            writer = 0 if size < SMALL else written.index(min(written))
            written[writer] += size
            own = writer == rank
        if own:
            found.setdefault(group, {})[name] = share_of(value)
    return found


def _writes(value: DTensor, number: int) -> bool:
    """Whether this rank writes its share of `value`, the one of that number: one of those that have the same share."""
    coordinate = value.device_mesh.get_coordinate()
    if coordinate is None or value.to_local().numel() == 0:
        return False
    for dim, placement in enumerate(value.placements):
        assert isinstance(placement, (Shard, Replicate)), placement
        if isinstance(placement, Replicate) and coordinate[dim] != number % value.device_mesh.size(dim):
            return False
    return True


def on_host(pieces: dict[str, dict[str, Share]]) -> dict[str, dict[str, Share]]:
    """Return copies in the host's memory, which nothing changes while they are written."""
    return {
        group: {name: Share(piece.local.to("cpu", copy=True), piece.offset) for name, piece in named.items()}
        for group, named in pieces.items()
    }


def write_pieces(folder: Path, pieces: dict[str, dict[str, Share]], rank: int, world: int) -> dict[str, int]:
    """Write this rank's files into `folder`, flushed, and return their sizes in bytes. `pieces` is emptied on the way.

    OSError or SafetensorError if the disk does not take them.
    """
    sizes = {}
    for group in list(pieces):
        named = pieces.pop(group)
        path = folder / (f"{group}{SUFFIX}" if world == 1 else f"{group}.{rank}-of-{world}{SUFFIX}")
        begins = {name: list(piece.offset) for name, piece in named.items() if any(piece.offset)}
        metadata = {"offsets": json.dumps(begins)} if world > 1 else None
        save_file({name: _plain(piece.local) for name, piece in named.items()}, path, metadata)
        sync(path)
        sizes[path.name] = path.stat().st_size
    return sizes


def _plain(value: Tensor) -> Tensor:
    """Return a tensor on the host with a storage of its own, as safetensors wants it."""
    value = value.cpu().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def index_of(tensors: Tensors) -> dict[str, Any]:
    """Return what index.json says of these tensors, to which `files` are to be added: bytes by name."""
    described = {
        group: {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in named.items()}
        for group, named in tensors.items()
    }
    return {"tensors": described}


def read_tensors(folder: Path) -> dict[str, dict[str, Tensor | Spread]]:
    """Return the tensors of a checkpoint by group and name, mapped into memory: what is not used is not read.

    Damaged for a file that cannot be read; of tensors in pieces when they are used.
    """
    if not (folder / INDEX_FILE).is_file():
        return {file.name.removesuffix(SUFFIX): dict(_load(file)) for file in sorted(folder.glob(f"*{SUFFIX}"))}
    try:
        return _indexed(folder, json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{INDEX_FILE}: {error}") from error


def _indexed(folder: Path, index: Mapping[str, Any]) -> dict[str, dict[str, Tensor | Spread]]:
    files: dict[str, list[_RankFile]] = {}
    for name, size in index["files"].items():
        of_rank = _OF_RANK.fullmatch(name.removesuffix(SUFFIX))
        if of_rank is None:
            raise ValueError(f"{name} is no file of a rank")
        files.setdefault(of_rank[1], []).append(_RankFile(folder / name, size, int(of_rank[2]) / int(of_rank[3])))
    return {
        group: {
            name: _InFiles(name, getattr(torch, dtype), torch.Size(shape), files.get(group, []))
            for name, (dtype, shape) in named.items()
        }
        for group, named in index["tensors"].items()
    }


def _load(path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path.name}: {error}") from error
    return found


class _RankFile:
    """A rank's file of one group, opened when something of it is wanted; `place`: the rank over the world."""

    def __init__(self, path: Path, size: int, place: float) -> None:
        self.path, self.size, self.place = path, size, place
        self._pieces: dict[str, Share] | None = None

    def piece(self, name: str) -> Share | None:
        """Return what this file holds of a tensor."""
        if self._pieces is None:
            self._pieces = self._open()
        return self._pieces.get(name)

    def _open(self) -> dict[str, Share]:
        try:
            found = self.path.stat().st_size
            if found != self.size:
                raise ValueError(f"it has {found} bytes, not {self.size}")
            tensors = load_file(self.path)
            with safe_open(self.path, "pt") as file:
                begins = json.loads(file.metadata()["offsets"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{self.path.name}: {error}") from error
        return {name: Share(value, begins.get(name, [0] * value.dim())) for name, value in tensors.items()}


class _InFiles:
    """A tensor in pieces."""

    def __init__(self, name: str, dtype: torch.dtype, shape: torch.Size, files: Sequence[_RankFile]) -> None:
        self.name, self.dtype, self.shape, self.files = name, dtype, shape, files

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return the part that begins at `offset`; Damaged where the files do not hold all of it.

        The files of ranks whose share was about here are looked into first, and those of the others not at all.
        """
        place = offset[0] / self.shape[0] if self.shape and self.shape[0] else 0.0
        wanted = torch.empty(tuple(shape), dtype=self.dtype)
        left = wanted.numel()
        for file in sorted(self.files, key=lambda file: abs(file.place - place)):
            if left == 0:
                break
            piece = file.piece(self.name)
            if piece is not None:
                left -= _copy_overlap(wanted, offset, piece)
        if left:
            raise Damaged(f"{left} of the {wanted.numel()} wanted values of {self.name} are in no file")
        return wanted


def _copy_overlap(wanted: Tensor, offset: Sequence[int], piece: Share) -> int:
    """Copy what a piece has of the part `wanted`, which begins at `offset`, and return the number of values."""
    first = [max(a, b) for a, b in zip(offset, piece.offset, strict=True)]
    last = [min(a + m, b + n) for a, m, b, n in zip(offset, wanted.shape, piece.offset, piece.local.shape, strict=True)]
    shape = [end - begin for begin, end in zip(first, last, strict=True)]
    if any(size <= 0 for size in shape):
        return 0
    target = part_of(wanted, [begin - start for begin, start in zip(first, offset, strict=True)], shape)
    target.copy_(part_of(piece.local, [begin - start for begin, start in zip(first, piece.offset, strict=True)], shape))
    return target.numel()
