"""`--retry`: failed rows of finished parts are taken up again and join the rows of their part that were fine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from ddx.data.precompute.dedup import DUPLICATE
from ddx.data.precompute.encode_parts import encoded_parts
from ddx.data.precompute.part import Part, read_part
from ddx.data.precompute.part_writer import PartWriter
from ddx.data.precompute.pictures import fetch
from ddx.data.precompute.plan import Plan
from ddx.data.precompute.reopen import reopened
from ddx.data.ranks import already_written, claim
from ddx.data.rows import OK, piece_path

if TYPE_CHECKING:
    from ddx._core import StoreWriter
    from ddx.progress import Progress


def retry_rows(plan: Plan, writer: StoreWriter, progress: Progress) -> None:
    """Take up the failed rows of this rank's parts, all finished, whose status matches `plan.config.retry`.

    A part counts as it was until it is whole again, whenever the process stops; until rows.parquet is written anew the
    store is incomplete. Raises DdxError while a training reads the store.
    """
    with claim(plan.store, retry_lock(plan.rank.rank)) as held:
        if not held:
            raise already_written(plan.store)
        rows = [row for part in plan.share(plan.rank.rank) for row in failed_rows(plan, part)]
        if rows:
            _write_renewed(plan, writer, rows, progress)
        else:
            like_that = "" if "all" in plan.config.retry else f" with {', '.join(plan.config.retry)}"
            progress.log(f"no row of {plan.store} failed{like_that}")


def retry_lock(rank: int) -> str:
    """The lock of a rank that takes rows up again."""
    return f"retry-{rank}"


def any_retries(plan: Plan) -> bool:
    """Whether a rank is still taking rows up again."""
    for rank in range(plan.rank.world):
        with claim(plan.store, retry_lock(rank)) as held:
            if not held:
                return True
    return False


def failed_rows(plan: Plan, part: int) -> list[int]:
    """The rows of a finished part that failed with one of the statuses to take up again."""
    table = pq.read_table(plan.store / piece_path(part), columns=["row", "status"])
    statuses = zip(table["row"].to_pylist(), table["status"].to_pylist(), strict=True)
    return [row for row, status in statuses if matches(status, plan.config.retry)]


def matches(status: str, patterns: Sequence[str]) -> bool:
    """Whether a row with this status is to be taken up again; not a duplicate with "all", which would be one again."""
    if status == OK:
        return False
    return any(status != DUPLICATE if pattern == "all" else fnmatchcase(status, pattern) for pattern in patterns)


def _write_renewed(plan: Plan, writer: StoreWriter, rows: Sequence[int], progress: Progress) -> None:
    with reopened(plan.store, "taking rows up again"):
        pass
    progress.start("retry", len(rows), "rows")
    try:
        with PartWriter(writer, plan.sizes, replace=True) as part_writer:
            for part in _renewed(plan, rows, progress):
                part_writer.put(part)
    except KeyboardInterrupt:
        progress.log("stopped; the same command goes on")
        raise
    finally:
        progress.finish()


def _renewed(plan: Plan, rows: Sequence[int], progress: Progress) -> Iterator[Part]:
    """The parts of these rows, which rise, with what became of them now."""
    picked = range(-(-len(rows) // plan.sizes.part_rows))
    current: Part | None = None
    source = plan.input.pick([row - plan.sizes.first_row for row in rows])
    items = fetch(plan, source, picked, numbers=rows)
    for piece in encoded_parts(plan, items, progress):
        for place in range(len(piece.rows.status)):
            row = rows[piece.rows.first_row + place]
            number = row // plan.sizes.part_rows
            if current is None or current.number != number:
                if current is not None:
                    yield current
                current = read_part(plan.store, number, plan.sizes)
            target = row - current.rows.first_row
            current.rows.take(target, piece.rows, place)
            if place in piece.encoded:
                current.encoded[target] = piece.encoded[place]
    if current is not None:
        yield current
