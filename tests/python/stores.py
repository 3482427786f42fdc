"""Small inputs of precompute, and what to look at in the stores that it makes; used by the tests of several stages."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from commands import Command

CAPTIONS = (
    "a cat",
    "a small red circle above a large blue square on a yellow photograph",
    "the",
    "two dogs to the left of a house, a detailed painting with light and a very long sentence that goes on and on",
    "a dog and a cat in a house",
)
BROKEN = (3, 9)


def write_pairs(path: Path, num_rows: int) -> Path:
    """Smooth random pictures of several sizes inside the file, those of BROKEN damaged; one row without a caption."""
    random = np.random.default_rng(0)
    images, captions = [], []
    for row in range(num_rows):
        coarse = Image.fromarray(random.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((64 + 7 * row, 70 + 3 * row), Image.Resampling.BICUBIC).save(buffer, "PNG")
        images.append(b"not a picture" if row in BROKEN else buffer.getvalue())
        captions.append("  " if row == 5 else f"{CAPTIONS[row % len(CAPTIONS)]} {row}")
    pq.write_table(pa.table({"image": images, "caption": captions}), path)
    return path


def finish(process: Command, code: int = 0) -> tuple[str, str]:
    """Wait for the process, check its exit code, and return what it printed."""
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def rank_of_two(number: int) -> dict[str, str]:
    """What torchrun, which training/test_two_ranks.py starts, tells a process; here the ranks meet through files."""
    return {**os.environ, "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}


def shard_bytes(store: Path) -> dict[str, bytes]:
    """Every file of the store that holds data or metadata."""
    skipped = ("run.json", "_ddx")
    files = (path for path in store.rglob("*") if path.is_file())
    named = {str(path.relative_to(store)): path for path in files}
    return {name: path.read_bytes() for name, path in sorted(named.items()) if not name.startswith(skipped)}
