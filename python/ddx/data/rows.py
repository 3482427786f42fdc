"""rows.parquet: what became of every input row. Each part leaves its piece; they are joined when all are there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILE_NAME = "rows.parquet"
OK = "ok"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("caption", pa.string()),
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
    """The rows of one part, failed ones included, in input order."""

    first_row: int
    keys: list[str]
    captions: list[str]
    status: list[str]
    detail: list[str]
    width: list[int]
    height: list[int]
    crop: list[Sequence[float] | None]
    hash: list[str]

    @property
    def ok(self) -> list[int]:
        """Places inside the part of the rows that are fine."""
        return [place for place, status in enumerate(self.status) if status == OK]

    def fail(self, place: int, status: str, detail: str) -> None:
        """Record that a row did not make it."""
        self.status[place], self.detail[place] = status, detail

    def counts(self) -> dict[str, int]:
        """Failed rows by reason."""
        reasons = sorted(status for status in self.status if status != OK)
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}

    def parquet(self) -> bytes:
        """The piece of rows.parquet."""
        table = pa.Table.from_pydict(
            {
                "row": range(self.first_row, self.first_row + len(self.status)),
                "key": self.keys,
                "caption": self.captions,
                "status": self.status,
                "detail": self.detail,
                "width": self.width,
                "height": self.height,
                "crop": self.crop,
                "hash": self.hash,
            },
            schema=SCHEMA,
        )
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd")
        return out.getvalue()

    def errors(self) -> bytes:
        """The failed rows, one JSON object a line."""
        lines: list[dict[str, Any]] = [
            {"row": self.first_row + place, "key": self.keys[place], "status": status, "detail": self.detail[place]}
            for place, status in enumerate(self.status)
            if status != OK
        ]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def piece_path(part: int) -> str:
    """Where a part leaves its rows, inside the store."""
    return f"_ddx/rows/{part}.parquet"


def errors_path(part: int) -> str:
    """Where a part lists its failed rows, inside the store."""
    return f"_ddx/errors/{part}"


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
    folder = os.open(store, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path
