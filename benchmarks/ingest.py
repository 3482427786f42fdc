"""From URLs to resized pictures: ingest beside img2dataset end to end, from a server in another process.

img2dataset's own downloader runs inside this process (no processes of its own to start), with its defaults but for a
centre crop and few threads, which suit it; it writes tars of JPEGs. Ingest hands over batches of pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # img2dataset's image library asks the network for its newest version

import pyarrow as pa
import pyarrow.parquet as pq
from _environment import machine, write_result
from _peers import Work, need, paired, photograph, serve

from ddx._core import Batch, Ingest, Input

RESOLUTION = 512
SIZES = {(1024, 768): 200, (2048, 1536): 80}  # pictures a turn
ROUNDS = 9
THREADS = 16


def main() -> None:
    """Measure and write the result."""
    need("img2dataset")
    environment, result = machine(), {}
    for size, count in SIZES.items():
        encoded = photograph(size)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "x.jpg").write_bytes(encoded)
            with serve(folder) as url:
                urls = [f"{url}/x.jpg?{number}" for number in range(count)]
                pq.write_table(pa.table({"url": urls, "caption": ["x"] * count}), folder / "urls.parquet")
                source = Input([str(folder / "urls.parquet")])
                peer = Img2dataset(folder / "peer", urls)
                works = {"img2dataset": Work(peer.run, count)}
                ours = Work(lambda source=source, count=count: ingest(source, count), count)
                result[f"{size[0]}x{size[1]}, {len(encoded) // 1024} KiB"] = paired(ours, works, rounds=ROUNDS)
    print(result)
    print(f"wrote {write_result('ingest', result, environment)}")


def ingest(source: Input, count: int) -> None:
    """All pictures, fetched and resized."""
    settings = {"sizes": [(RESOLUTION, RESOLUTION)], "part_rows": 1024, "batch_size": 16, "decode_threads": 1}
    with Ingest(source, parts=[0], per_host=THREADS, allow_private_hosts=True, **settings) as items:
        found = sum(item.count for item in items if isinstance(item, Batch))
    assert found == count, f"{found} of {count} pictures"


class Img2dataset:
    """img2dataset's downloader over one shard of URLs."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        from img2dataset.downloader import Downloader
        from img2dataset.resizer import Resizer
        from img2dataset.writer import WebDatasetSampleWriter

        folder.mkdir()
        self.folder = folder
        self.table = pa.table({"url": urls, "caption": ["x"] * len(urls)})
        settings: dict[str, Any] = {
            "sample_writer_class": WebDatasetSampleWriter,
            "resizer": Resizer(RESOLUTION, "center_crop", resize_only_if_bigger=False),
            "thread_count": THREADS,
            "save_caption": True,
            "extract_exif": True,
            "output_folder": str(folder),
            "column_list": ["caption", "url"],
            "timeout": 10,
            "number_sample_per_shard": 10_000,
            "oom_shard_count": 5,
            "compute_hash": "sha256",
            "verify_hash_type": None,
            "encode_format": "jpg",
            "retries": 0,
            "user_agent_token": None,
            "disallowed_header_directives": ["noai", "noimageai", "noindex", "noimageindex"],
        }
        self.downloader = Downloader(**settings)

    def run(self) -> None:
        """Fetch, resize and write all; it removes the list that it read."""
        shard = self.folder / "shard.feather"
        with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, self.table.schema) as file:
            file.write_table(self.table)
        with contextlib.redirect_stdout(io.StringIO()):
            self.downloader.download_shard((0, str(shard)))
        statistics = (self.folder / "00000_stats.json").read_text(encoding="utf-8")
        assert f'"successes": {self.table.num_rows},' in statistics, statistics


if __name__ == "__main__":
    main()
