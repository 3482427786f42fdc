"""How a run saves: every rank writes its part beside the training, and the first puts the whole in its place.

    start   copies this rank's part in the host's memory and begins to write it
    settle  between steps: once every rank has written, the checkpoint gets its name
    wait    until that is done; no rank waits in a collective for a disk, however slow, but asks again each second

One save is under way at a time: the next one waits. A rank that cannot write ends the run on all of them, with the
same error. Where the copies would not fit, or are so small that it makes no difference, the steps wait instead.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from torch.distributed.tensor import DTensor

from ddx.checkpoints.files import index_of, on_host, own_pieces, write_pieces
from ddx.checkpoints.folder import Snapshot, hidden_folder, put_in_place, retire, sweep, told
from ddx.checkpoints.shares import Share
from ddx.errors import DdxError, first_line
from ddx.training.distributed import Ranks
from ddx.training.host_memory import free_memory

AT_ONCE = 2**26  # bytes of a rank's part that are written while the steps wait
SHARE = 0.5  # of the host's free memory, for the copies of all of its ranks
PATIENCE_S = 1.0  # between two questions whether every rank is done


class Saver:
    """The saves of one run; every rank calls the same, at the same steps.

    in_background: whether the training may go on while a checkpoint is written.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        keep: int,
        in_background: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.ranks, self.keep, self.say = folder, ranks, keep, say
        self.in_background = in_background
        self.writer = str(ranks.share(f"{os.getpid()}-{secrets.token_hex(3)}"))
        self.writers = 0  # ranks that write; not known before the first save
        self.writing: _Writing | None = None  # on every rank or on none, as the next one
        self.sweeping: _Job | None = None
        self.said = False

    def start(self, step: int, snapshot: Snapshot) -> None:
        """Begin to save what is live now; the former save is waited for. DdxError where that one failed."""
        self.wait()
        self.writers = self.writers or self._count_writers(step)
        ranks, hidden = self.ranks, hidden_folder(self.folder, step, self.writer)
        pieces = self._own_pieces(snapshot)
        size = sum(piece.local.nbytes for named in pieces.values() for piece in named.values())
        aside = self.in_background and ranks.any(size > AT_ONCE) and self._has_room(size)
        if aside:
            pieces = on_host(pieces)

        def write() -> dict[str, int]:
            if ranks.is_first:
                sweep(self.folder, but=hidden)
            with told(self.folder, step):
                if self.writers == 1 and not ranks.is_first:
                    return {}
                hidden.mkdir(parents=True, exist_ok=True)
                return write_pieces(hidden, pieces, ranks.rank, self.writers)

        described = index_of(snapshot.tensors) if self.writers > 1 else None
        self.writing = _Writing(step, hidden, snapshot.state, described, _Job(write))
        if not aside:
            self.wait()

    def settle(self) -> None:
        """Give the checkpoint its name, if every rank has written its part. DdxError, on all, where one failed."""
        if self.writing is None or self.ranks.any(self.writing.job.is_alive()):
            return
        done, self.writing = self.writing, None
        files: dict[str, int] = {}
        for outcome in self.ranks.gathered(done.job.outcome):
            if isinstance(outcome, DdxError):
                if self.ranks.is_first:
                    shutil.rmtree(done.hidden, ignore_errors=True)
                raise outcome
            files |= outcome or {}
        self.ranks.first(lambda: self._finish(done, files))
        self.sweeping = _Job(lambda: sweep(self.folder) if self.ranks.is_first else None)

    def wait(self) -> None:
        """Wait until nothing is under way. DdxError, on all ranks, where the save failed."""
        while self.writing is not None:
            self.writing.job.join(PATIENCE_S)
            self.settle()
        while self.sweeping is not None:
            self.sweeping.join(PATIENCE_S)
            if not self.ranks.any(self.sweeping.is_alive()):
                self.sweeping = None

    def _finish(self, done: _Writing, files: dict[str, int]) -> None:
        index = None if done.described is None else {**done.described, "files": files}
        put_in_place(done.hidden, self.folder, done.step, done.state, index)
        with told(self.folder, done.step):
            retire(self.folder, self.keep)

    def _count_writers(self, step: int) -> int:
        """Return how many ranks write: all, or the first alone where another one does not see its folder."""
        if self.ranks.world == 1:
            return 1
        mark = hidden_folder(self.folder, step, f"{self.writer}.seen")

        def make() -> None:
            with told(self.folder, step):
                mark.mkdir(parents=True)

        self.ranks.first(make)
        blind = self.ranks.any(not mark.is_dir())
        if self.ranks.is_first:
            mark.rmdir()
        if blind:
            self.say(
                f"not every machine sees {self.folder}: the first process writes the checkpoints alone, and a run that "
                "stops goes on only where all see them"
            )
        return 1 if blind else self.ranks.world

    def _own_pieces(self, snapshot: Snapshot) -> dict[str, dict[str, Share]]:
        if self.writers == self.ranks.world:
            return own_pieces(snapshot.tensors, self.ranks.rank, self.ranks.world)
        if any(isinstance(value, DTensor) for values in snapshot.tensors.values() for value in values.values()):
            raise DdxError(
                f"not every machine sees {self.folder}, where each is to write its share",
                hint="put --workspace on a file system that all machines mount at the same path",
            )
        return own_pieces(snapshot.tensors, 0, 1) if self.ranks.is_first else {}

    def _has_room(self, size: int) -> bool:
        """Whether copies of as much as this by every process of a machine fit into its memory, on all machines."""
        needed = size * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not self.ranks.any(needed > SHARE * free_memory()):
            return True
        if not self.said:
            self.said = True
            self.say(
                "training waits while checkpoints are written: a copy to write from would take "
                f"{needed / 2**30:.1f} GiB, more than half of the host's free memory"
            )
        return False


class _Job(Thread):
    """Work on a thread that ends with the process; `outcome`: what it returned, or why it failed, as a DdxError."""

    def __init__(self, work: Callable[[], dict[str, int] | None]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.outcome: dict[str, int] | DdxError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.work()
        except DdxError as error:
            self.outcome = error
        except Exception as error:
            self.outcome = DdxError(f"no checkpoint can be written: {type(error).__name__}: {first_line(error)}")


class _Writing(NamedTuple):
    """A save under way."""

    step: int
    hidden: Path
    state: Mapping[str, Any]
    described: dict[str, Any] | None  # the tensors, of several ranks
    job: _Job
