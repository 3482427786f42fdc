"""Decode and resize to 512: JPEGs of 1024x768, beside OpenCV (area), Pillow (Lanczos) and img2dataset's resizer.

Ours is ingest with one decoding thread, from bytes in a parquet file: it also reads, hashes and batches. img2dataset's
resizer also encodes again, as it must to write its tars. The pixels are compared with Pillow's Lanczos.
A build with libjpeg-turbo has a result of its own.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # img2dataset's image library asks the network for its newest version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _environment import machine, write_result
from _peers import Work, need, paired, photograph, rounded
from PIL import Image

from ddx._core import JPEG_DECODER, Batch, Ingest, Input

RESOLUTION = 512
COUNT = 100  # pictures a turn
ROUNDS = 15
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")


def main() -> None:
    """Measure and write the result."""
    need("cv2", "img2dataset")
    import cv2
    from img2dataset.resizer import Resizer

    environment, encoded = machine(), photograph()
    cv2.setNumThreads(1)
    resizer = Resizer(RESOLUTION, "center_crop", resize_only_if_bigger=False)

    def opencv() -> None:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        left, side = (image.shape[1] - image.shape[0]) // 2, image.shape[0]
        cv2.resize(image[:, left : left + side], (RESOLUTION, RESOLUTION), interpolation=cv2.INTER_AREA)

    def img2dataset() -> None:
        error = resizer(io.BytesIO(encoded))[-1]
        assert error is None, error

    with tempfile.TemporaryDirectory() as folder:
        source = table(Path(folder) / "speed.parquet", [encoded] * COUNT)
        peers = {
            "OpenCV, area": opencv,
            "Pillow, Lanczos": lambda: pillow(encoded),
            "img2dataset's resizer": img2dataset,
        }
        works = {name: Work(lambda run=run: [run() for _ in range(COUNT)], COUNT) for name, run in peers.items()}
        result = {"decoder": JPEG_DECODER, "jpeg": f"1024x768, {len(encoded) // 1024} KiB"}
        result |= paired(Work(lambda: ours(source, COUNT), COUNT), works, rounds=ROUNDS)
        pictures = [photograph(name=name) for name in PHOTOGRAPHS]
        drawn = ours(table(Path(folder) / "pixels.parquet", pictures), len(pictures))
    decibel = [psnr(image, pillow(jpeg)) for image, jpeg in zip(drawn, pictures, strict=False)]
    result["PSNR against Pillow in dB"] = dict(zip(PHOTOGRAPHS, map(rounded, decibel), strict=True))
    print(result)
    name = "decode" if JPEG_DECODER == "zune-jpeg" else "decode_libjpeg_turbo"
    print(f"wrote {write_result(name, result, environment)}")


def table(path: Path, pictures: Sequence[bytes]) -> Input:
    """The pictures in a parquet file."""
    cells = [{"bytes": picture, "path": ""} for picture in pictures]
    pq.write_table(pa.table({"image": cells, "caption": ["x"] * len(cells)}), path)
    return Input([str(path)])


def ours(source: Input, count: int) -> np.ndarray:
    """Every row through ingest; returns the last batch."""
    last, found = np.empty(0), 0
    settings = {
        "sizes": [(RESOLUTION, RESOLUTION)],
        "part_rows": 1024,
        "batch_size": 16,
        "parts": [0],
        "decode_threads": 1,
    }
    with Ingest(source, **settings) as ingest:
        for item in ingest:
            if isinstance(item, Batch):
                found += item.count
                last = np.asarray(item.images)
    assert found == count, f"{found} of {count} pictures"
    return last


def pillow(encoded: bytes) -> np.ndarray:
    """The usual lines: open, convert, crop and resize, as an array."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    left, side = (image.width - image.height) / 2, image.height
    box = (left, 0, left + side, side)
    return np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS, box=box))


def psnr(ours: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal to noise of 8-bit pictures."""
    return float(10 * np.log10(255**2 / np.mean((ours.astype(np.float64) - reference) ** 2)))


if __name__ == "__main__":
    main()
