"""The weights of a part of a pipeline: written in shards, or those of another folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.errors import DdxError
from ddx.teachers.hub import weight_files

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 5_000_000_000  # bytes; this much is in memory at once


def write_weights(folder: Path, name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write the tensors into `<name>.safetensors`, or into several files with an index of them.

    Raises DdxError when the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        path = folder / f".{len(shards)}.safetensors"
        try:
            save_file(held, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise DdxError(f"cannot write {path}: {error}", hint="is there space left?") from error
        shards.append((path, list(held)))
        held.clear()

    for key, value in tensors:
        if held and size + value.nbytes > SHARD:
            flush()
            size = 0
        held[key] = value.contiguous()
        size, total = size + value.nbytes, total + value.nbytes
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / f"{name}.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, keys) in enumerate(shards, start=1):
        final = f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(keys, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def link_weights(source: Path, folder: Path) -> None:
    """Give `folder` the weights of another: hard links where the disk has them, else copies. DdxError without any."""
    files = weight_files(source)
    if not files:
        raise DdxError(
            f"{source} has no safetensors weights, and the file does not hold its {source.name}",
            hint="give a base with weights: --teacher-base NAME|PATH",
        )
    for file in (*files, *source.glob("*.safetensors.index*.json")):
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, folder / file.name)
