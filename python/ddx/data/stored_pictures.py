"""Pictures of any source that `ddx precompute` reads, decoded and cropped to a square, without a teacher or a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ddx._core import Batch, Ingest, Input
from ddx.data.core import core_errors
from ddx.data.fetched_rows import FOLDER
from ddx.errors import DdxError

PART_ROWS, BATCH_SIZE = 1024, 16
OK = "ok"


def source_pictures(
    sources: Sequence[str], side: int, *, limit: int | None, skipped: Counter[str]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of sources as uint8 `[side, side, 3]`: the middle square, by Lanczos.

    Rows that fail are counted in `skipped` by their status. DdxError for sources that cannot be read.
    """
    with core_errors():
        rows = Input(list(sources), limit=limit)
        ingest = Ingest(
            rows,
            sizes=[(side, side)],
            part_rows=PART_ROWS,
            batch_size=BATCH_SIZE,
            parts=range(-(-rows.rows // PART_ROWS)),
            max_upscale=64.0,
        )
    with ingest:
        while True:
            with core_errors():
                item = next(ingest, None)
            if item is None:
                return
            if isinstance(item, Batch):
                images = np.asarray(item.images)
                yield from (images[place].copy() for place in range(item.count))
            else:
                skipped.update(status for status in item.status if status != OK)


def kept_pictures(store: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures uint8 `[H, W, 3]` that `ddx precompute --stage fetch` left in a store.

    DdxError for a store that keeps none: encoding removes them.
    """
    files = sorted((store / FOLDER).glob("*.pictures.parquet"), key=lambda path: int(path.name.split(".")[0]))
    if not files:
        raise DdxError(
            f"{store} keeps no pictures, but latents alone",
            hint="give --reference the source that it was made from, or a store after `ddx precompute --stage fetch`",
        )
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_SIZE, columns=["width", "height", "picture"]):
                for row in batch.to_pylist():
                    shape = (row["height"], row["width"], 3)
                    yield np.frombuffer(row["picture"], np.uint8).reshape(shape).copy()
