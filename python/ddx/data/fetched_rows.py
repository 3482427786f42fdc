"""What became of rows whose pictures wait on disk to be encoded, for those who look at them without a teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from ddx.data.rows import OK

FOLDER = "_ddx/fetched"
END = ".rows.parquet"


def rows_path(store: Path, part: int) -> Path:
    """Where a part that is fetched says what became of its rows; written last."""
    return store / FOLDER / f"{part}{END}"


def fetched_tables(store: Path) -> list[Path]:
    """The tables of rows of the parts whose pictures wait there, in order."""
    return sorted((store / FOLDER).glob(f"*{END}"), key=lambda path: int(path.name.partition(".")[0]))


def count_statuses(tables: Iterable[Path]) -> tuple[int, dict[str, int]]:
    """Rows that are fine, and failed ones by reason, of the rows of parts."""
    counts = Counter[str]()
    for path in tables:
        counts.update(pq.read_table(path, columns=["status"])["status"].to_pylist())
    ok = counts.pop(OK, 0)
    return ok, dict(sorted(counts.items()))
