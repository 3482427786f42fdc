"""Ingest decodes and crops JPEGs at more than twice Pillow's rate: images a second of processor time, to a 512 crop.

Processor time, not wall time, so that other work on the machine does not count. Embedded bytes, and URLs of a server in
another process on this machine. Pillow decodes and resizes (Lanczos) only; ingest also reads, hashes and batches.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _environment import machine, write_result
from PIL import Image

from ddx._core import Ingest, Input

RESOLUTION = 512
SIZES = {(1024, 768): 300, (2048, 1536): 100}  # pictures of each size


def main() -> None:
    """Measure and write the result."""
    environment, result = machine(), {}
    for size, count in SIZES.items():
        encoded = photograph(size)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "x.jpg").write_bytes(encoded)
            cells: dict[str, Any] = {"image": [{"bytes": encoded, "path": ""}] * count}
            with serve(folder) as url:
                urls = {"url": [f"{url}/x.jpg"] * count}
                rates = {
                    "pillow": 1 / pillow_seconds(encoded),
                    "ingest from bytes": ingest_rate(folder / "bytes.parquet", cells, count),
                    "ingest from loopback": ingest_rate(folder / "urls.parquet", urls, count),
                }
        key = f"{size[0]}x{size[1]}, {len(encoded) // 1024} KiB"
        result[key] = {name: round(rate, 1) for name, rate in rates.items()}
        print(key, result[key])
    print(f"wrote {write_result('ingest', {'images per second of processor time': result}, environment)}")


def photograph(size: tuple[int, int]) -> bytes:
    """Return a photograph of that size as JPEG."""
    import skimage.data

    with Image.open(Path(skimage.data.__file__).parent / "motorcycle_left.png") as image:
        out = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=90)
    return out.getvalue()


def ingest_rate(path: Path, columns: dict[str, Any], count: int) -> float:
    """Return images a second of this process's time, all threads together."""
    pq.write_table(pa.table({**columns, "caption": ["x"] * count}), path)
    start = processor_seconds()
    source = Input([str(path)])
    settings = {"resolution": RESOLUTION, "part_rows": 1024, "batch_size": 16, "allow_private_hosts": True}
    with Ingest(source, parts=[0], **settings) as ingest:
        found = sum(getattr(item, "count", 0) for item in ingest)
    assert found == count, f"{found} of {count} pictures"
    return count / (processor_seconds() - start)


def processor_seconds() -> float:
    """Return the time that all threads of this process have run."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def pillow_seconds(encoded: bytes, repeats: int = 30) -> float:
    """Return Pillow's time for one picture, decoded and resized."""
    start = time.process_time()
    for _ in range(repeats):
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        left, side = (image.width - image.height) / 2, image.height
        box = (left, 0, left + side, side)
        np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS, box=box))
    return (time.process_time() - start) / repeats


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def _serve(folder: str, port: Any) -> None:
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder from a process of its own."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_serve, args=(str(folder), port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
