"""Random batches of 64 from the shards: our reader beside a flat memory map and zarr-python, on the same files.

Samples a second of processor time (wall time counts other work too) from a store in the page cache: latents of
(32, 16, 16) float16, with one-token captions of width 8, and with captions of 16 tokens of width 2304 as SANA has.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import zarr
from _environment import machine, write_result

from ddx._core import BatchReader, StoreWriter
from ddx.data.layout import Sizes, array_specs, round_up
from ddx.data.part_writer import raw

LATENT_SHAPE = (32, 16, 16)
BATCH = 64
PART_ROWS = 1024
STORES = {"one token of width 8": (20_000, 1, 8), "16 tokens of width 2304": (4_000, 16, 2304)}


def main() -> None:
    """Measure and write the result."""
    environment, result = machine(), {}
    for name, (rows, tokens, width) in STORES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.zarr"
            write_store(path, Sizes(rows, PART_ROWS, LATENT_SHAPE, width, tokens), tokens)
            rates = {
                "reader, checksums verified": reader_rate(path, verify=True),
                "reader": reader_rate(path, verify=False),
            }
            if tokens == 1:
                rates["np.memmap, latents only"] = memmap_rate(path, rows)
                rates["zarr-python oindex, latents only"] = zarr_rate(path, rows)
        result[name] = {reader: round(rate) for reader, rate in rates.items()}
        print(name, result[name])
    print(f"wrote {write_result('reader', {'samples per second of processor time': result}, environment)}")


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


def reader_rate(path: Path, *, verify: bool) -> float:
    """Our reader, one thread."""
    reader = BatchReader(path, batch_size=BATCH, seed=0, threads=1, prefetch=2, verify=verify)
    return rate(lambda: next(reader))


def memmap_rate(path: Path, rows: int) -> float:
    """A flat file of the same latents."""
    flat = np.memmap(path / "flat", np.float16, "w+", shape=(rows, *LATENT_SHAPE))
    flat[:] = 1
    random = np.random.default_rng(0)
    return rate(lambda: flat[random.integers(0, rows, BATCH)])


def zarr_rate(path: Path, rows: int) -> float:
    """zarr-python on the same store."""
    latents: Any = zarr.open_array(str(path / "latents"), mode="r")
    random = np.random.default_rng(0)
    return rate(lambda: latents.oindex[np.unique(random.integers(0, rows, BATCH))], warm_batches=5)


def rate(batch: Callable[[], object], *, seconds: float = 3.0, warm_batches: int = 300) -> float:
    """Return samples a second of processor time, once caches and shard indexes are warm."""
    for _ in range(warm_batches):
        batch()
    began, num = time.process_time(), 0
    while time.process_time() - began < seconds:
        batch()
        num += BATCH
    return num / (time.process_time() - began)


if __name__ == "__main__":
    main()
