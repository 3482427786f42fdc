"""`--stage fetch`: pictures wait on disk for `--stage encode`, which may run elsewhere and later.

_ddx/fetched/<part>.pictures.parquet   row, width, height, picture: uint8 `[H, W, 3]` in C order; a row group a batch
_ddx/fetched/<part>.rows.parquet       what became of every row; written last
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ddx.data.fetched_rows import FOLDER, count_statuses, rows_path
from ddx.data.precompute.pictures import End, Pictures, fetch
from ddx.data.precompute.plan import Plan
from ddx.data.rows import read_rows
from ddx.data.segments import record_path
from ddx.errors import DdxError, UsageError, cannot_write
from ddx.run_record import sync

if TYPE_CHECKING:
    from ddx.progress import Progress

SCHEMA = pa.schema([("row", pa.int64()), ("width", pa.int32()), ("height", pa.int32()), ("picture", pa.binary())])
DIGEST = b"ddx.digest"


def fetch_parts(plan: Plan, parts: Sequence[int], progress: Progress) -> Iterator[int]:
    """Fetch the pictures of these parts and leave them on disk, a part at a time, whole or not at all.

    Yields the number of each part that is there now.
    """
    todo = [part for part in parts if not record_path(plan.store, part).is_file() and not is_fetched(plan, part)]
    if not todo:
        return
    progress.start("fetch", sum(len(plan.sizes.part_range(part)) for part in todo), "rows")
    # machines that share the disk may count the same process numbers
    temporary = plan.store / FOLDER / f"{socket.gethostname()}-{os.getpid()}.tmp"
    counts = {"ok": 0, "failed": 0}
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        writer: pq.ParquetWriter | None = None
        for item in fetch(plan, plan.input, todo):
            if writer is None:
                writer = pq.ParquetWriter(temporary, SCHEMA, compression="zstd", compression_level=1)
            if isinstance(item, Pictures):
                writer.write_table(_table(item))
                progress.advance(len(item.rows), **item.stats)
                continue
            writer.close()
            writer = None
            _put(temporary, _pictures_path(plan, item.number))
            table = item.rows.table().replace_schema_metadata({DIGEST: _digest(plan)})
            pq.write_table(table, temporary, compression="zstd")
            _put(temporary, _rows_path(plan, item.number))
            counts["ok"] += len(item.rows.ok)
            counts["failed"] += len(item.rows.status) - len(item.rows.ok)
            progress.advance(len(item.rows.status) - len(item.rows.ok), **counts)
            yield item.number
    except OSError as error:
        raise cannot_write(plan.store, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        progress.finish()


def is_fetched(plan: Plan, part: int) -> bool:
    """Whether the pictures of a part are there. UsageError when they were fetched with other settings."""
    path = _rows_path(plan, part)
    if not path.is_file():
        return False
    if (pq.read_schema(path).metadata or {}).get(DIGEST) != _digest(plan):
        raise UsageError(
            f"the pictures in {plan.store / FOLDER} were fetched with other settings or from another input",
            hint="repeat the settings of --stage fetch, or give --out for a second store; nothing was deleted",
        )
    return True


def fetched(plan: Plan, parts: Sequence[int]) -> Iterator[Pictures | End]:
    """The items of `fetch`, in the same batches, from the disk. DdxError for a part that is not fetched."""
    for part in parts:
        if not is_fetched(plan, part):
            raise DdxError(
                f"part {part} of {plan.store} is not fetched yet",
                hint="run the same command with --stage fetch, then this one again: it goes on",
            )
        rows = read_rows(_rows_path(plan, part))
        with pq.ParquetFile(_pictures_path(plan, part)) as file:
            for group in range(file.num_row_groups):
                yield _pictures(file.read_row_group(group), plan.config.batch_size)
        captions = [row or [text] for row, text in zip(rows.captions, rows.caption, strict=True)]
        yield End(part, rows, captions, rows.numbers)


def fetched_statuses(plan: Plan) -> tuple[int, dict[str, int]] | None:
    """Rows that are fine, and failed ones by reason; None while parts are missing, or some are encoded already."""
    if not all(_rows_path(plan, part).is_file() for part in plan.sizes.parts):
        return None
    return count_statuses(_rows_path(plan, part) for part in plan.sizes.parts)


def _table(batch: Pictures) -> pa.Table:
    height, width = batch.images.shape[1:3]
    num = len(batch.rows)
    pictures = [image.tobytes() for image in batch.images[:num]]
    columns = {"row": batch.rows, "width": [width] * num, "height": [height] * num, "picture": pictures}
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def _pictures(table: pa.Table, batch_size: int) -> Pictures:
    height, width = table["height"][0].as_py(), table["width"][0].as_py()
    images = np.zeros((batch_size, height, width, 3), np.uint8)
    for place, picture in enumerate(table["picture"]):
        images[place] = np.frombuffer(picture.as_buffer(), np.uint8).reshape(height, width, 3)
    return Pictures(table["row"].to_pylist(), images)


def forget(plan: Plan, part: int) -> None:
    """Remove the pictures of a part that is encoded."""
    for path in (_rows_path(plan, part), _pictures_path(plan, part)):
        path.unlink(missing_ok=True)


def forget_all(plan: Plan) -> None:
    """Remove what a stopped run left of parts that are encoded."""
    shutil.rmtree(plan.store / FOLDER, ignore_errors=True)


def _digest(plan: Plan) -> bytes:
    return plan.pictures_digest.encode()


def _pictures_path(plan: Plan, part: int) -> Path:
    return plan.store / FOLDER / f"{part}.pictures.parquet"


def _rows_path(plan: Plan, part: int) -> Path:
    return rows_path(plan.store, part)


def _put(temporary: Path, path: Path) -> None:
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
