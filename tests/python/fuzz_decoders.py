"""Compares the decoders with Pillow on pictures in many encodings: a decoder that draws a picture wrong does not panic.

`make fuzz` runs this file for DDX_FUZZ_SECONDS from a random seed, which is printed and which DDX_FUZZ_SEED repeats.
What differs is kept below `target/tmp/fuzz/decoders`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ddx._core import Batch, Ingest, Input, PartEnd
from picture_encodings import Encoding, Pixels, by_pillow, encodings

SIZES = [(65, 49), (17, 33), (64, 48), (100, 75), (31, 17), (129, 40), (33, 90), (16, 16)]
# Of JPEG and WebP, whose arithmetic is free in the last bit.
LEAST_PSNR = 40


def decoded(pictures: Sequence[bytes], size: tuple[int, int], folder: Path) -> tuple[dict[int, Pixels], PartEnd]:
    """What an ingest makes of pictures of one size, by row."""
    cells = [{"bytes": picture, "path": "x"} for picture in pictures]
    pq.write_table(pa.table({"image": cells, "caption": ["caption"] * len(cells)}), folder / "a.parquet")
    found: dict[int, Pixels] = {}
    source = Input([str(folder / "a.parquet")])
    with Ingest(source, sizes=[size], part_rows=len(cells), batch_size=16, parts=[0], tiff=True) as ingest:
        for item in ingest:
            if isinstance(item, Batch):
                found |= dict(zip(item.rows, np.array(item.images), strict=False))
            else:
                end = item
    return found, end


def psnr(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def difference(encoding: Encoding, ours: Pixels | None, status: str) -> str | None:
    """What is wrong with a picture; None if nothing is."""
    theirs = encoding.expected
    if theirs is None:
        try:
            theirs = by_pillow(encoding.encoded)
        except OSError:
            return None  # Pillow refuses it
    if ours is None:
        return None if encoding.may_be_refused else f"refused: {status}"
    furthest = np.abs(ours.astype(int) - theirs).max()
    if encoding.is_lossy:
        return None if psnr(ours, theirs) >= LEAST_PSNR else f"{psnr(ours, theirs):.1f} dB"
    return None if furthest <= 1 else f"off by {furthest}"


def differences(seed: int, each: int, folder: Path) -> list[tuple[Encoding, str]]:
    """The pictures that differ among `each` from every encoder."""
    made = encodings(np.random.default_rng(seed), size := SIZES[seed % len(SIZES)], each)
    found, end = decoded([encoding.encoded for encoding in made], size, folder)
    reasons = [difference(encoding, found.get(row), end.detail[row]) for row, encoding in enumerate(made)]
    return [(encoding, reason) for encoding, reason in zip(made, reasons, strict=True) if reason is not None]


def main() -> int:
    """Compare until the time is over."""
    seed = int(os.environ.get("DDX_FUZZ_SEED", time.time_ns() % 2**32))
    until = time.monotonic() + float(os.environ.get("DDX_FUZZ_SECONDS", "600"))
    print(f"decoders: seed {seed}", flush=True)
    kept = Path(__file__).parents[2] / "target" / "tmp" / "fuzz" / "decoders"
    rounds = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            for number, (encoding, reason) in enumerate(differences(seed + rounds, 2, Path(folder))):
                kept.mkdir(parents=True, exist_ok=True)
                path = kept / f"{seed + rounds}-{number}.{encoding.format}"
                path.write_bytes(encoding.encoded)
                print(f"{path}: {reason}: {encoding.settings}", flush=True)
                wrong += 1
            rounds += 1
    print(f"decoders: {rounds} rounds, {wrong} pictures wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
