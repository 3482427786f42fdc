"""The tensors of a component's folder, read one at a time: a student need not fit into memory to be exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddx.errors import DdxError
from ddx.teachers.hub import weight_files

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StoredWeights(Mapping[str, Tensor]):
    """Tensors by name, from all safetensors of a folder or one of them. DdxError for a folder without any."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, only: Path | None = None) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._files: dict[str, Any] = {}
        path = folder
        try:
            for path in [only] if only else weight_files(folder):
                file = stack.enter_context(safe_open(path, framework="pt"))
                self._files |= dict.fromkeys(file.keys(), file)
        except (OSError, SafetensorError) as error:
            raise DdxError(f"cannot read {path}: {error}", hint="is the file whole? fetch or make it again") from error
        if not self._files:
            raise DdxError(f"{folder} has no safetensors weights", hint="is this a complete diffusers pipeline?")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())


@contextlib.contextmanager
def stored_weights(folder: Path, *, only: Path | None = None) -> Iterator[StoredWeights]:
    """Open the weights of a folder, or of one file of it."""
    with contextlib.ExitStack() as stack:
        yield StoredWeights(folder, stack, only)


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return the tensor in `dtype`, if one is given and the tensor is floating."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
