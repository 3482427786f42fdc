"""Counts the tensor storages that are alive, by what they are for, and remembers their largest sum.

A dispatch mode sees every tensor that an operation returns. A storage that it has not seen before is entered with its
bytes, and leaves when Python frees it. That is what a caching allocator hands out; what it adds of its own (rounding,
fragments, the context of the device, workspaces of libraries) is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes to which CUDA's allocator rounds a request


class Use(NamedTuple):
    """What a storage is for: whose it is ("student", "teacher", …), and its kind ("weights", "gradients", …)."""

    owner: str
    kind: str


_NOTHING = Use("", "")


@dataclass
class Peak:
    """The largest sum of bytes so far, what was being made then, and of what the sum was made up."""

    num_bytes: int = 0
    during: Use = _NOTHING
    by_use: dict[Use, int] = field(default_factory=dict)


class Ledger(TorchDispatchMode):
    """The storages of the tensors that are made inside of it."""

    def __init__(self, *, block: int = BLOCK) -> None:
        super().__init__()
        self.block = block
        self.now = 0
        self.peak = Peak()
        self.use = Use("", "other")
        self._alive: dict[int, tuple[int, Use]] = {}
        self._sums: dict[Use, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and enter what it returns."""
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self.enter(value)
        return found

    def enter(self, value: Tensor, use: Use | None = None) -> None:
        """Count the storage of a tensor once; with `use`, that is what it is for from now on."""
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            if use is not None:
                size, before = self._alive[key]
                self._alive[key] = size, use
                self._add(before, -size)
                self._add(use, size)
            return
        size = -(-storage.nbytes() // self.block) * self.block
        self._alive[key] = size, use or self.use
        self._add(use or self.use, size)
        self.now += size
        weakref.finalize(storage, self._leave, key)
        if self.now > self.peak.num_bytes:
            self.peak = Peak(self.now, self.use, {use: size for use, size in self._sums.items() if size})

    def mark(self, values: Iterable[Tensor | None], use: Use) -> None:
        """Say what these tensors are for."""
        for value in values:
            if value is not None:
                self.enter(value, use)

    @contextmanager
    def using(self, use: Use) -> Iterator[None]:
        """Within, new storages are for `use`."""
        before, self.use = self.use, use
        try:
            yield
        finally:
            self.use = before

    def forget_peak(self) -> None:
        """Begin anew with what is alive."""
        self.peak = Peak(self.now, self.use, {use: size for use, size in self._sums.items() if size})

    def _leave(self, key: int) -> None:
        size, use = self._alive.pop(key)
        self.now -= size
        self._add(use, -size)

    def _add(self, use: Use, size: int) -> None:
        self._sums[use] = self._sums.get(use, 0) + size
