"""rows.parquet: what became of every input row. Each part leaves its piece; they are joined when all are there."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ddx.run_record import sync

FILE_NAME = "rows.parquet"
OK = "ok"
CUT = "the caption is cut"  # begins the detail of a row that is fine, but for what the encoder does not read
ROWS_AT_ONCE = 65_536
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crop", pa.list_(pa.float32())),
        ("hash", pa.string()),
    ]
)


@dataclass
class PartRows:
    """The rows of one part, failed ones included, in input order; the lists are columns of rows.parquet."""

    first_row: int
    key: list[str]
    source: list[str]
    caption: list[str]
    captions: list[list[str] | None]  # where a row has several; `caption` is then the first that is not blank
    status: list[str]
    detail: list[str]
    width: list[int]
    height: list[int]
    crop: list[Sequence[float] | None]
    hash: list[str]

    @property
    def numbers(self) -> range:
        """The rows' numbers in the store."""
        return range(self.first_row, self.first_row + len(self.status))

    @property
    def ok(self) -> list[int]:
        """Places inside the part of the rows that are fine."""
        return [place for place, status in enumerate(self.status) if status == OK]

    def fail(self, place: int, status: str, detail: str) -> None:
        """Record that a row did not make it."""
        self.status[place], self.detail[place] = status, detail

    def take(self, place: int, other: PartRows, other_place: int) -> None:
        """Replace what is known of one row by what `other` knows of it."""
        for name in COLUMNS:
            getattr(self, name)[place] = getattr(other, name)[other_place]

    def counts(self) -> dict[str, int]:
        """Failed rows by reason."""
        reasons = sorted(status for status in self.status if status != OK)
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}

    def table(self) -> pa.Table:
        """The rows as a table of `SCHEMA`."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        return pa.Table.from_pydict({"row": self.numbers, **columns}, schema=SCHEMA)

    def parquet(self) -> bytes:
        """The piece of rows.parquet."""
        out = io.BytesIO()
        pq.write_table(self.table(), out, compression="zstd")
        return out.getvalue()

    def errors(self) -> bytes:
        """The failed rows, one JSON object a line."""
        lines: list[dict[str, Any]] = [
            {"row": self.first_row + place, "key": self.key[place], "status": status, "detail": self.detail[place]}
            for place, status in enumerate(self.status)
            if status != OK
        ]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


COLUMNS = tuple(field.name for field in dataclasses.fields(PartRows) if field.name != "first_row")


def read_rows(path: Path) -> PartRows:
    """The rows of a piece."""
    table = pq.read_table(path, schema=SCHEMA)
    return PartRows(table["row"][0].as_py(), *(table[name].to_pylist() for name in COLUMNS))


def piece_path(part: int) -> str:
    """Where a part leaves its rows, inside the store."""
    return f"_ddx/rows/{part}.parquet"


def errors_path(part: int) -> str:
    """Where a part lists its failed rows, inside the store."""
    return f"_ddx/errors/{part}"


def is_joined(store: Path, num_parts: int) -> bool:
    """Whether rows.parquet is there and no part was written after it."""
    try:
        joined = (store / FILE_NAME).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return all((store / piece_path(part)).stat().st_mtime_ns < joined for part in range(num_parts))


def join(store: Path, parts: Iterable[int]) -> Path:
    """Write rows.parquet from the pieces, whole or not at all."""
    path, temporary = store / FILE_NAME, store / f".{FILE_NAME}.tmp"
    try:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for part in parts:
                writer.write_table(pq.read_table(store / piece_path(part), schema=SCHEMA))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(store)
    return path


def tables(store: Path, parts: Iterable[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the rows of parts that are done, in order, some ten thousand rows at a time.

    They come from the pieces, also of a store that has rows.parquet: at a hundred million rows its footer, which has an
    entry for each part, takes a gigabyte of memory.
    """
    waiting: list[pa.RecordBatch] = []
    for part in parts:
        with pq.ParquetFile(store / piece_path(part)) as file:
            waiting += file.iter_batches(ROWS_AT_ONCE, columns=list(columns))
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def count_cut(store: Path, parts: Iterable[int]) -> int:
    """The rows whose captions are longer than the encoder reads."""
    found = 0
    for table in tables(store, parts, ("status", "detail")):
        fine = pc.equal(table["status"], OK)
        found += pc.sum(pc.and_(fine, pc.starts_with(table["detail"], CUT))).as_py() or 0
    return found
