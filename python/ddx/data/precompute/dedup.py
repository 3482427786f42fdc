"""`--dedup content`: of rows whose images have the same bytes the first is kept, once all parts are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from ddx._core import StoreWriter
from ddx.data.core import core_errors
from ddx.data.precompute.part import read_part
from ddx.data.precompute.part_writer import PartWriter
from ddx.data.precompute.plan import Plan
from ddx.data.rows import OK, PartRows, piece_path

if TYPE_CHECKING:
    from ddx.data.segments import Segment
    from ddx.progress import Progress

DUPLICATE = "duplicate"
SAME_AS = "the same image as row "
# The first 64 bits of SHA-256: 8 bytes a row in memory, and one false pair in three hundred runs over LAION-400M.
HEX_DIGITS = 16


def drop_duplicates(plan: Plan, segments: Sequence[Segment], progress: Progress) -> None:
    """Take out rows, of the segments that want it, whose image came before in the store; which one arrived first does
    not matter.

    The parts that hold some are written anew. Nothing may read the store meanwhile.
    """
    unique = [segment for segment in segments if segment.settings.get("dedup") == "content"]
    if not unique:
        return
    found = [_hashes(plan, part) for part in range(unique[-1].parts.stop)]
    hashes, rows = (np.concatenate(column) for column in zip(*found, strict=True))
    first = np.unique(hashes, return_index=True)[1]
    doubled = np.delete(np.arange(len(rows)), first)
    kept = rows[first][np.searchsorted(hashes[first], hashes[doubled])]
    same_as = dict(zip(rows[doubled].tolist(), kept.tolist(), strict=True))
    by_part: dict[int, list[int]] = {}
    for row in same_as:
        by_part.setdefault(row // plan.sizes.part_rows, []).append(row)
    for segment in unique:
        numbers = [number for number in segment.parts if number in by_part]
        if not numbers:
            continue
        progress.start("dedup", len(numbers), "parts")
        with core_errors():
            writer = StoreWriter.open(plan.store, segment.digest)
        with PartWriter(writer, plan.sizes, replace=True) as part_writer:
            for number in numbers:
                part = read_part(plan.store, number, plan.sizes)
                for row in by_part[number]:
                    place = row - part.rows.first_row
                    part.rows.fail(place, DUPLICATE, f"{SAME_AS}{same_as[row]}")
                    del part.encoded[place]
                part_writer.put(part)
                progress.advance()
        progress.finish()


def renumber_duplicates(rows: PartRows, shift: int) -> None:
    """Let the rows of a part that were duplicates name the earlier row by its new number, `shift` higher."""
    for place, (status, detail) in enumerate(zip(rows.status, rows.detail, strict=True)):
        if status == DUPLICATE:
            rows.fail(place, status, f"{SAME_AS}{int(detail.removeprefix(SAME_AS)) + shift}")


def _hashes(plan: Plan, part: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The beginning of each image's hash, and the rows, of those of a part that are fine."""
    table = pq.read_table(plan.store / piece_path(part), columns=["row", "hash"], filters=[("status", "==", OK)])
    text = "".join(value[:HEX_DIGITS] for value in table["hash"].to_pylist())
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64), table["row"].to_numpy()
