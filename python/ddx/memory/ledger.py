"""Counts the tensor storages that are alive, by what they are for, and remembers their largest sum.

A dispatch mode sees every tensor that an operation returns. A storage that it has not seen before is entered with its
bytes, and leaves when Python frees it. That is what a caching allocator hands out; what it adds of its own (rounding,
fragments, the context of the device, workspaces of libraries) is not in it. What is made `on_host` is counted apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, UntypedStorage
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

    def higher(self, other: Peak) -> Peak:
        """The peak of two spans together."""
        return max(self, other, key=lambda peak: peak.num_bytes)


@dataclass(frozen=True)
class Start:
    """What is alive where a span begins."""

    now: int
    by_use: dict[Use, int]


class Ledger(TorchDispatchMode):
    """The storages of the tensors that are made inside of it."""

    def __init__(self, *, block: int = BLOCK) -> None:
        super().__init__()
        self.block = block
        self.now = 0
        self.peak = Peak()
        self.use = Use("", "other")
        self.host_now = self.host_peak = 0
        self._at_home: set[int] = set()
        self._on_host = False
        self._alive: dict[int, tuple[int, Use]] = {}
        self._sums: dict[Use, int] = {}
        self._notices = True

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
        if key in self._at_home:
            return
        if self._on_host:
            self._enter_at_home(storage, key)
            return
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
        self._look()

    def mark(self, values: Iterable[Tensor | None], use: Use) -> None:
        """Say what these tensors are for."""
        for value in values:
            if value is not None:
                self.enter(value, use)

    def told(self, event: object) -> None:
        """Be told what the step does, which operations alone do not say; a ledger of bytes has no use for it."""

    @contextmanager
    def casting(self, owner: str) -> Iterator[None]:
        """Within, new storages are the copies of an owner's weights in another dtype, which count as what is made."""
        yield

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
        self.peak = self._as_peak()

    # what is counted apart

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Within, new storages are in the host's memory."""
        self._on_host = True
        try:
            yield
        finally:
            self._on_host = False

    def _enter_at_home(self, storage: UntypedStorage, key: int) -> None:
        size = 1 << max(storage.nbytes() - 1, 0).bit_length()  # torch rounds pinned memory to a power of two
        self._at_home.add(key)
        self.host_now += size
        self.host_peak = max(self.host_peak, self.host_now)
        weakref.finalize(storage, self._leave_home, key, size)

    def _leave_home(self, key: int, size: int) -> None:
        self._at_home.remove(key)
        self.host_now -= size

    def bump(self, sizes: Mapping[Use, int]) -> None:
        """Count what is alive for a moment beside everything else, without storages."""
        size = sum(sizes.values())
        if self.now + size > self.peak.num_bytes and self._notices:
            by_use = {use: self._sums.get(use, 0) + sizes.get(use, 0) for use in (*self._sums, *sizes)}
            self.peak = Peak(self.now + size, self.use, {use: size for use, size in by_use.items() if size})

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within, there is a peak of its own; the one before is kept."""
        before = self.peak
        try:
            yield
        finally:
            self.peak = before

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Within, what is made is counted and makes no peak."""
        self._notices = False
        try:
            yield
        finally:
            self._notices = True

    def begin_span(self) -> Start:
        """Begin a span, whose peak starts with what is alive now."""
        self.forget_peak()
        return Start(self.now, dict(self._sums))

    def span(self, start: Start, of_kind: str = "") -> dict[str, int]:
        """Return what was alive at the peak since a start and not there: of one kind, and all else under ""."""
        all_of_it = self.peak.num_bytes - start.now
        if not of_kind:
            return {"": all_of_it}
        marked = sum(size - start.by_use.get(use, 0) for use, size in self.peak.by_use.items() if use.kind == of_kind)
        return {"": all_of_it - marked, of_kind: marked}

    def size(self, value: Tensor) -> int:
        """Return what the storage of a tensor counts."""
        return self._alive[value.untyped_storage()._cdata][0]

    def is_alive(self, key: int) -> bool:
        """Return whether the storage with this `_cdata` is alive."""
        return key in self._alive

    def _look(self) -> None:
        if self.now > self.peak.num_bytes and self._notices:
            self.peak = self._as_peak()

    def _as_peak(self) -> Peak:
        return Peak(self.now, self.use, {use: size for use, size in self._sums.items() if size})

    def _leave(self, key: int) -> None:
        size, use = self._alive.pop(key)
        self.now -= size
        self._add(use, -size)

    def _add(self, use: Use, size: int) -> None:
        self._sums[use] = self._sums.get(use, 0) + size
