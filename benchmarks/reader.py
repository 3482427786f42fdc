"""Random batches of 64 from the shards: our reader on one thread beside a flat memory map and zarr-python.

From a store in the page cache: latents of (32, 16, 16) float16, which are 16 KiB, with captions of one token of width
8; and with captions of 16 tokens of width 2304, as SANA has. A row is read from its file and checked at first, and
copied from a map of its shard from then on: both are measured. The peers read latents alone, and zarr-python from the
same shards: sorted and without those that were drawn twice, as it likes them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import zarr
from _environment import machine, write_result
from _peers import Work, paired

from ddx._core import BatchReader, StoreWriter
from ddx.data.buckets import Bucket
from ddx.data.layout import Sizes, array_specs, round_up
from ddx.data.precompute.part_writer import raw

LATENT_SHAPE = (32, 16, 16)
SQUARE = Bucket(512, 512, LATENT_SHAPE)
BATCH = 64
PART_ROWS = 1024
ROUNDS = 15
STORES = {"one token of width 8": (20_000, 1, 8), "16 tokens of width 2304": (4_000, 16, 2304)}


def main() -> None:
    """Measure and write the result."""
    environment, result = machine(), {}
    for name, (rows, tokens, width) in STORES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.zarr"
            write_store(path, Sizes(rows, PART_ROWS, (SQUARE,), width, tokens), tokens)
            peers = {
                "the same, checksums not verified": reader_work(path, verify=False),
                "the same, each row for the first time": first_work(path, rows // BATCH, verify=True),
                "for the first time, not verified": first_work(path, rows // BATCH, verify=False),
            }
            if tokens == 1:
                peers["np.memmap"] = memmap_work(path, rows)
                peers["zarr-python oindex"] = zarr_work(path, rows)
            result[name] = paired(reader_work(path, verify=True), peers, rounds=ROUNDS)
        print(name, result[name])
    print(f"wrote {write_result('reader', result, environment)}")


def write_store(path: Path, sizes: Sizes, tokens: int) -> None:
    """Write a store of random numbers, part by part."""
    random = np.random.default_rng(0)
    writer = StoreWriter.create(path, json.dumps(array_specs(sizes)), "{}", "", {})
    for part in range(sizes.num_parts):
        rows = len(sizes.part_range(part))
        bits = random.integers(0, 2**15 - 2**11, (rows, *LATENT_SHAPE), dtype=np.uint16)
        offset, length = np.full(PART_ROWS, -1, np.int64), np.zeros(PART_ROWS, np.int32)
        offset[:rows] = part * sizes.part_tokens + np.arange(rows) * round_up(tokens)
        length[:rows] = tokens
        words = np.ones((rows * round_up(tokens), sizes.text_width), np.float16)
        shards = {"latents": bits, "text/tokens": words, "text/offset": offset, "text/length": length}
        writer.write_part(
            part=part,
            first_row=part * PART_ROWS,
            rows=rows,
            ok=rows,
            failed={},
            shards={name: (None, raw(array)) for name, array in shards.items()},
            files={},
        )


def reader_work(path: Path, *, verify: bool) -> Work:
    """Our reader, one thread; it reads ahead by two batches of 500, no more between turns."""
    reader = BatchReader(path, batch_size=BATCH, seed=0, threads=1, prefetch=2, verify=verify)
    return batches(lambda: next(reader))


def first_work(path: Path, num_batches: int, *, verify: bool) -> Work:
    """The first epoch of a reader, with its opening."""

    def run() -> None:
        reader = BatchReader(path, batch_size=BATCH, seed=0, threads=1, prefetch=2, verify=verify)
        for _ in range(num_batches):
            next(reader)

    return Work(run, num_batches * BATCH)


def memmap_work(path: Path, rows: int) -> Work:
    """A flat file of latents."""
    flat = np.memmap(path / "flat", np.float16, "w+", shape=(rows, *LATENT_SHAPE))
    flat[:] = 1
    random = np.random.default_rng(0)
    return batches(lambda: flat[random.integers(0, rows, BATCH)])


def zarr_work(path: Path, rows: int) -> Work:
    """zarr-python on the same store."""
    latents: Any = zarr.open_array(str(path / "latents"), mode="r")
    random = np.random.default_rng(0)
    return batches(lambda: latents.oindex[np.unique(random.integers(0, rows, BATCH))], count=5)


def batches(batch: Callable[[], object], *, count: int = 500) -> Work:
    """A turn of so many batches; items are samples."""

    def run() -> None:
        for _ in range(count):
            batch()

    return Work(run, count * BATCH)


if __name__ == "__main__":
    main()
