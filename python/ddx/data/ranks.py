"""Precompute in several processes: each takes its parts, and they meet through files alone, on one node or many."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddx.errors import DdxError, cannot_write
from ddx.workspace import LOCKS

CREATE = "create"  # the lock of whoever creates a store
READERS = "readers"  # the lock that whoever reads a store's shards holds, shared
COMPLETE = "complete"  # the lock of whoever declares a store complete, or no longer so


@dataclass(frozen=True)
class Rank:
    """This process among those of `torchrun` or of a job array; alone without either."""

    rank: int = 0
    world: int = 1
    local: int = 0
    apart: bool = False  # a job of its own, with a log of its own

    @classmethod
    def here(cls, rank: int | None = None, world: int | None = None) -> Rank:
        """Return what is given, or read the environment that torchrun sets."""
        if rank is not None and world is not None:
            return cls(rank, world, apart=True)
        number, count, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(number, max(count, 1), local)

    @property
    def is_first(self) -> bool:
        """Whether this process does what one has to do for all."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this process tells of its progress."""
        return self.is_first or self.apart


@contextmanager
def claim(store: Path, name: str, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a lock of the store, and say whether it is held; it ends with its process, however that ends.

    Any number of processes may hold it `shared`. `wait`: until whoever has it is done. On a file system without locks,
    or one that is read only, it counts as held: atomic writes still keep every file whole.
    """
    path = lock_path(store, name)
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        if not shared:
            raise cannot_write(store, error) from error
        yield True
        return
    with file:
        try:
            fcntl.flock(file, mode)
            held = True
        except BlockingIOError:
            held = False
        except OSError:
            held = True
        yield held


def lock_path(store: Path, name: str) -> Path:
    """Where a lock of the store is."""
    return store / LOCKS / f"{name}.lock"


def part_lock(part: int) -> str:
    """The lock of whoever writes a part, where parts are not shared out by rank."""
    return f"part-{part}"


def share_lock(rank: int) -> str:
    """The lock of whoever writes the parts of a rank."""
    return f"writer-{rank}"


def already_written(store: Path) -> DdxError:
    """The error for two equal commands at once."""
    return DdxError(f"another process is writing {store}", hint="wait for it, or stop it")
