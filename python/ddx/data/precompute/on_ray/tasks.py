"""What a task of a cluster does. Each is a generator of events for the command; none knows of Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddx import __version__
from ddx.data.config import OF_RAY, PrecomputeConfig
from ddx.errors import DdxError, first_line
from ddx.progress import NullProgress

if TYPE_CHECKING:
    from ddx._core import StoreWriter
    from ddx.data.precompute.keeping import EncodeKeeping
    from ddx.data.precompute.plan import Plan

# What a task takes over from the command's environment: secrets are the machine's own.
INHERITED = ("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What all tasks of a run are told; `config` has the engine of one process. `run` is this run's alone.

    threads: those that decode in a task.
    """

    run: str
    config: PrecomputeConfig
    sources: tuple[str, ...]
    workspace: str
    keeping: EncodeKeeping | None
    folder: str
    environment: Mapping[str, str]
    threads: int
    version: str = __version__


class Unfit(DdxError):
    """A machine of the cluster is not like the one that gave the order, or it is gone: another may do."""


@dataclass(frozen=True)
class Began:
    """A task runs on this node."""

    node: str
    host: str


@dataclass(frozen=True)
class Opened:
    """The machine sees the store and has all that a task needs; from here on a failure is that of a part."""

    todo: tuple[int, ...] = ()
    rows: int = 0
    num_parts: int = 0


@dataclass(frozen=True)
class Wrote:
    """A part is on disk: rows that are fine, and failed ones."""

    part: int
    ok: int
    failed: int


@dataclass(frozen=True)
class Said:
    """A line for the user."""

    line: str


@dataclass(frozen=True)
class Failed:
    """The task ends here."""

    error: DdxError


Event = Began | Opened | Wrote | Said | Failed


class Lines(NullProgress):
    """The lines that work would print."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        """Keep it."""
        self.lines.append(message)

    def take(self) -> Iterator[Said]:
        """What came since the last call."""
        lines, self.lines = self.lines, []
        return map(Said, lines)


def order_of(
    config: PrecomputeConfig, sources: Sequence[str], workspace: str, keeping: EncodeKeeping | None, threads: int
) -> Order:
    """The order of a command that runs here, in this folder and environment."""
    local = {name: getattr(PrecomputeConfig, name) for name in OF_RAY}
    inherited = {key: value for key, value in os.environ.items() if key in INHERITED or key.startswith("DDX_")}
    return Order(
        run=uuid.uuid4().hex,
        config=dataclasses.replace(config, **local),
        sources=tuple(map(str, sources)),
        workspace=workspace,
        keeping=keeping,
        folder=os.getcwd(),
        environment=inherited,
        threads=config.decode_threads or threads,
    )


def prepare(order: Order) -> Iterator[Event]:
    """Make the store, or open the one that is there; end with what is to be done."""
    from ddx.data.precompute.repair import discard_damaged
    from ddx.data.precompute.run import finish_replacements

    lines = Lines()
    try:
        plan, writer = _open(order, lines)
        if writer is not None:
            finish_replacements(writer)
            if order.config.verify:
                discard_damaged(plan, writer, lines)
        todo = tuple(part for part in plan.sizes.parts if not _is_done(plan, writer, part))
    except Exception as error:
        yield _failed(error)
        return
    yield from lines.take()
    yield Opened(todo, sum(len(plan.sizes.part_range(part)) for part in todo), plan.sizes.num_parts)


def work(order: Order, parts: Sequence[int]) -> Iterator[Event]:
    """Fetch, or encode and write, these parts; one that another task has finished meanwhile counts as written."""
    from ddx.data.precompute.fetched import fetch_parts
    from ddx.data.precompute.run import write_parts
    from ddx.data.ranks import claim, lock_path, part_lock

    try:
        plan, writer = _opened(order)
        yield Opened()
        with ExitStack() as held:
            # A machine that the cluster gave up may be writing still.
            for part in sorted(parts):
                held.enter_context(claim(plan.store, part_lock(part), wait=True))
            todo = [part for part in parts if not _is_done(plan, writer, part)]
            yield from (_wrote(plan, part) for part in parts if part not in todo)
            quiet = NullProgress()
            numbers = fetch_parts(plan, todo, quiet) if writer is None else write_parts(plan, writer, todo, quiet)
            for part in numbers:
                yield _wrote(plan, part)
            for part in parts:  # whoever waits for one of these finds its part done
                lock_path(plan.store, part_lock(part)).unlink(missing_ok=True)
    except Exception as error:
        yield _failed(error)


def finish(order: Order) -> Iterator[Event]:
    """Do what remains of the command when all parts are there: failed rows again, one table of rows, the record."""
    from ddx.data.precompute.run import precompute_here
    from ddx.workspace import Workspace

    lines = Lines()
    try:
        _enter(order)
        config = dataclasses.replace(order.config, verify=False)  # before the parts were made
        precompute_here(
            config, order.sources, workspace=Workspace(order.workspace), progress=lines, keeping=order.keeping
        )
    except Exception as error:
        yield from lines.take()
        yield _failed(error)
        return
    yield from list(lines.take())[1:]  # the first says what is read, as the command has
    yield Opened()


_kept: tuple[str, Plan, StoreWriter | None] | None = None


def _opened(order: Order) -> tuple[Plan, StoreWriter | None]:
    """The plan and the store's writer, with the encoders that an earlier task of this process has loaded."""
    global _kept
    if _kept is None or _kept[0] != order.run:
        _kept = (order.run, *_open(order, Lines()))
    return _kept[1:]


def _open(order: Order, lines: Lines) -> tuple[Plan, StoreWriter | None]:
    """The plan at its place in the store, and the writer unless pictures are only fetched.

    Raises Unfit where this machine is not like the one that gave the order.
    """
    from ddx.data.precompute.append import find_place_of_pictures, require_store
    from ddx.data.precompute.plan import make_plan
    from ddx.data.precompute.run import open_store
    from ddx.data.ranks import lock_path, share_lock
    from ddx.workspace import Workspace

    _enter(order)
    config = dataclasses.replace(order.config, decode_threads=order.threads)
    plan = make_plan(config, order.sources, Workspace(order.workspace))
    if not lock_path(plan.store, share_lock(0)).is_file():
        raise Unfit(
            f"{socket.gethostname()} does not see {plan.store}, which the command has made",
            hint="the machines of the cluster must mount the file system of --workspace and --out at the same path",
        )
    if order.config.stage == "fetch":
        return find_place_of_pictures(plan), None
    require_store(plan)
    return open_store(plan, order.keeping, lines)


def _enter(order: Order) -> None:
    """Be where the command is: relative paths start there."""
    if __version__ != order.version:
        raise Unfit(
            f"{socket.gethostname()} has ddx {__version__}, and the command ddx {order.version}",
            hint="install the same version on all machines of the cluster",
        )
    os.environ.update(order.environment)
    try:
        os.chdir(order.folder)
    except OSError as error:
        raise Unfit(
            f"{socket.gethostname()} has no folder {order.folder}: {error.strerror}",
            hint="call the command in a folder that all machines of the cluster mount at the same path",
        ) from error


def _is_done(plan: Plan, writer: StoreWriter | None, part: int) -> bool:
    from ddx.data.precompute.fetched import is_fetched
    from ddx.data.segments import record_path

    if writer is not None:
        return bool(writer.committed(part, part + 1))
    return record_path(plan.store, part).is_file() or is_fetched(plan, part)


def _wrote(plan: Plan, part: int) -> Wrote:
    from ddx.data.fetched_rows import count_statuses, rows_path
    from ddx.data.segments import record_path

    record = record_path(plan.store, part)
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        return Wrote(part, int(found["ok"]), sum(found["failed"].values()))
    ok, failed = count_statuses([rows_path(plan.store, part)])
    return Wrote(part, ok, sum(failed.values()))


def _failed(error: Exception) -> Failed:
    if isinstance(error, DdxError):
        return Failed(error)
    traceback.print_exception(error)  # into the log that Ray keeps of the task
    return Failed(DdxError(f"{type(error).__name__}: {first_line(error)}", hint="Ray's log of the task has more"))
