"""`scenes` as a parquet file of captioned pictures, as image data sets on the hub are laid out."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ddx.errors import UsageError, cannot_write
from ddx.progress import NullProgress, Progress
from ddx.scenes.captions import Split, sample_scenes
from ddx.scenes.render import render

ROWS_PER_GROUP = 512

SCHEMA = pa.schema(
    [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("caption", pa.string()),
        pa.field("split", pa.string()),
    ]
)


def write_parquet(
    path: Path, rows: int, seed: int = 0, split: Split = "train", *, progress: Progress | None = None
) -> Path:
    """Write `rows` pictures as PNG bytes with their captions; return the path.

    The file is the same for the same rows, seed and split, and is there whole or not at all. Raises UsageError for
    fewer rows than one and DdxError where the file cannot be written.
    """
    if rows < 1:
        raise UsageError(f"rows={rows} writes nothing", hint="give at least one row, e.g. --rows 4096")
    progress = progress or NullProgress()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    specs = sample_scenes(rows, seed, split)
    # One seed a row group, so that memory does not grow with the rows.
    seeds = np.random.SeedSequence([seed, 1]).generate_state(-(-rows // ROWS_PER_GROUP), dtype=np.uint64)
    progress.start("scenes", rows, "pictures")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(temporary, SCHEMA, compression="none") as writer:
            for group, group_seed in enumerate(seeds):
                chosen = specs[group * ROWS_PER_GROUP : (group + 1) * ROWS_PER_GROUP]
                images = render(chosen, int(group_seed))
                first = group * ROWS_PER_GROUP
                table = {
                    "image": [
                        {"bytes": _png(image), "path": f"scene-{first + offset:07d}.png"}
                        for offset, image in enumerate(images)
                    ],
                    "caption": [spec.caption for spec in chosen],
                    "split": [split] * len(chosen),
                }
                writer.write_table(pa.table(table, schema=SCHEMA))
                progress.advance(len(chosen))
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # where nothing can be written nothing can be deleted
            temporary.unlink(missing_ok=True)
    progress.finish()
    return path


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()
