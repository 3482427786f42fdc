"""Every file of a store against its checksums and records: `ddx inspect --verify`, and before a precompute goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ddx._core import StoreVerifier
from ddx.data.core import core_errors
from ddx.data.rows import FILE_NAME, OK, SCHEMA, piece_path
from ddx.data.segments import record_path

if TYPE_CHECKING:
    from ddx.progress import Progress

THREADS = 4
PARTS_AT_ONCE = 16 * THREADS
CURE = "the `ddx precompute` command that made it, with --verify, makes the damaged parts anew and nothing else"


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not what was written. `part`: the one to be made anew; None when it is of none."""

    file: str
    reason: str
    part: int | None = None


@dataclass
class Verified:
    """What was read, and what of it is damaged."""

    num_bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As `ddx inspect --json` gives it."""
        return {"bytes": self.num_bytes, "damaged": [vars(damage) for damage in self.damaged]}


def verify_all(store: Path, num_parts: int, progress: Progress) -> Verified:
    """Verify all of a store that is complete; of one that is not, the parts that are done, and the rest.

    Memory is that of a few parts and of the footer of rows.parquet. Raises DdxError when this is no store.
    """
    complete = (store / FILE_NAME).exists()
    parts = [part for part in range(num_parts) if complete or has_record(store, part)]
    found = verify_parts(store, parts, progress)
    rest = verify_rest(store, parts, found)
    return Verified(found.num_bytes + rest.num_bytes, found.damaged + rest.damaged)


def verify_parts(store: Path, parts: Sequence[int], progress: Progress) -> Verified:
    """Read every file of these parts, which have records, from its first byte to its last."""
    verifier = _verifier(store)
    megabytes = sum(sum(_record(store, part)["files"].values()) for part in parts) / 1e6
    progress.start("verify", round(megabytes), "MB")
    found, shown = Verified(), 0
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for first in range(0, len(parts), PARTS_AT_ONCE):
                some = parts[first : first + PARTS_AT_ONCE]
                for result in pool.map(lambda part: _verify_part(store, verifier, part), some):
                    found.num_bytes += result.num_bytes
                    found.damaged += result.damaged
                    now = round(found.num_bytes / 1e6)
                    progress.advance(now - shown, damaged=len(found.damaged))
                    shown = now
    finally:
        progress.finish()
    return found


def verify_rest(store: Path, parts: Sequence[int], found: Verified) -> Verified:
    """Read what is of no part: arrays of one shard, metadata, and rows.parquet, if it is there.

    `parts`: all that rows.parquet should be of; `found`: what is known of them, so that nothing is named twice.
    """
    num_bytes, damaged = _verifier(store).whole()
    rest = Verified(num_bytes, [Damage(file, reason) for file, reason in damaged])
    if (store / FILE_NAME).exists():
        rest.num_bytes += (store / FILE_NAME).stat().st_size
        rest.damaged += _verify_rows(store, parts, {damage.part for damage in found.damaged})
    return rest


def has_record(store: Path, part: int) -> bool:
    """Whether a part was done once, however it is now."""
    return record_path(store, part).exists()


def _verifier(store: Path) -> StoreVerifier:
    with core_errors():
        return StoreVerifier(store)


def _record(store: Path, part: int) -> dict[str, Any]:
    """A commit record; one without anything where there is none that can be read."""
    try:
        record = json.loads(record_path(store, part).read_text())
        return {"checksums": {}, **record} if isinstance(record["files"], dict) else {"files": {}}
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": {}}


def _verify_part(store: Path, verifier: StoreVerifier, part: int) -> Verified:
    record = _record(store, part)
    places, problem = _fine_places(store, part, record)
    num_bytes, damaged = verifier.part(part, places)
    found = [Damage(file, reason, part) for file, reason in damaged]
    if problem and record["files"] and piece_path(part) not in (damage.file for damage in found):
        found.append(Damage(piece_path(part), problem, part))
    return Verified(num_bytes, found)


def _fine_places(store: Path, part: int, record: dict[str, Any]) -> tuple[list[int] | None, str]:
    """The places of the fine rows as the part's piece of rows.parquet has them, or why it is not to be trusted."""
    try:
        table = pq.read_table(store / piece_path(part), columns=["row", "status"])
        rows, fine = table["row"].to_numpy(), pc.equal(table["status"], OK).to_numpy()
    except (OSError, pa.ArrowException) as error:
        return None, f"cannot be read: {error}"
    expected = np.arange(record.get("rows", 0)) + record.get("first_row", 0)
    if not np.array_equal(rows, expected) or np.count_nonzero(fine) != record.get("ok"):
        return None, "has other rows than its record says"
    return np.flatnonzero(fine).tolist(), ""


def _verify_rows(store: Path, parts: Sequence[int], bad: set[int | None]) -> list[Damage]:
    """Compare rows.parquet with the pieces that it was joined of, but for those of parts that are `bad`."""
    differing = []
    try:
        with pq.ParquetFile(store / FILE_NAME) as file:
            group = 0
            for part in parts:
                record = _record(store, part)
                if "rows" not in record:
                    return []  # where the next part begins is not known, and this one will be made anew
                groups = [group]  # a part's rows begin a group, and fill several if they are very many
                while sum(file.metadata.row_group(index).num_rows for index in groups) < record["rows"]:
                    groups.append(groups[-1] + 1)
                group = groups[-1] + 1
                if part not in bad and not file.read_row_groups(groups).equals(_piece(store, part)):
                    differing.append(part)
            if group != file.metadata.num_row_groups:
                return [Damage(FILE_NAME, "has more rows than its parts")]
    except (OSError, IndexError, pa.ArrowException) as error:
        return [Damage(FILE_NAME, f"cannot be read: {error}")]
    found = [Damage(FILE_NAME, f"differs from {piece_path(part)}") for part in differing[:1]]
    # Without a checksum nobody knows which of the two is right.
    unsure = [part for part in differing if piece_path(part) not in _record(store, part)["checksums"]]
    return found + [Damage(piece_path(part), f"differs from {FILE_NAME}", part) for part in unsure]


def _piece(store: Path, part: int) -> pa.Table:
    return pq.read_table(store / piece_path(part), schema=SCHEMA)
