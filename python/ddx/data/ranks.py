"""Precompute under torchrun: each rank takes its parts, and they meet through files alone, on one node or many."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddx.errors import DdxError


@dataclass(frozen=True)
class Rank:
    """This process among those that `torchrun` started; alone without it."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Rank:
        """Read the environment that torchrun sets."""
        rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(rank, max(world, 1), local)

    @property
    def is_first(self) -> bool:
        """Whether this process creates and finishes the store."""
        return self.rank == 0


@contextmanager
def only_writer(store: Path, rank: Rank) -> Iterator[None]:
    """Hold the store for this rank; two equal commands at once would overwrite each other's temporary files.

    Raises DdxError when another process holds it. The lock ends with its process, however that ends.
    """
    path = store / "_ddx" / f"writer-{rank.rank}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise cannot_write(store, error) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DdxError(f"another process is writing {store}", hint="wait for it, or stop it") from None
        except OSError:
            pass  # a file system without locks; atomic writes still keep every file whole
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def cannot_write(store: Path, error: OSError) -> DdxError:
    """The error for a disk that refuses."""
    cures = {
        errno.ENOSPC: "free some space, then run the same command: it goes on",
        errno.EDQUOT: "free some space, then run the same command: it goes on",
        errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), then run the same command: it goes on",
    }
    cure = cures.get(error.errno or 0, "give a folder that you may write to with --out or --workspace")
    return DdxError(f"cannot write {store}: {error.strerror or error}", hint=cure)
