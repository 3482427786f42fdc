"""The same pictures and captions as every kind of source; used by the tests of local files and of object stores."""

from __future__ import annotations

import csv
import io
import json
import pickle
import struct
import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM = 6
CAPTIONS = [f"picture number {number}, with a\tgrey edge" for number in range(NUM)]


def png(number: int) -> bytes:
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (80 + number, 70, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in range(NUM)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(number))
    return names


def image_folder(folder: Path) -> Path:
    for name, caption in zip(write_images(folder / "images" / "deep"), CAPTIONS, strict=True):
        (folder / "images" / "deep" / name).with_suffix(".txt").write_text(caption + "\n")
    return folder / "images"


def csv_of_paths(folder: Path) -> Path:
    names = write_images(folder / "pictures")
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows([f"pictures/{name}", caption] for name, caption in zip(names, CAPTIONS, strict=True))
    return folder / "list.csv"


def jsonl_beside_images(folder: Path) -> Path:
    """What the `datasets` library calls an image folder."""
    names = write_images(folder / "hub")
    lines = [json.dumps({"file_name": n, "text": c}) for n, c in zip(names, CAPTIONS, strict=True)]
    (folder / "hub" / "metadata.jsonl").write_text("\n".join(lines))
    return folder / "hub"


def tars(folder: Path) -> Path:
    """Two shards; the second has its captions in JSON."""
    for shard, numbers in enumerate((range(4), range(4, NUM))):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in numbers:
                text = json.dumps({"caption": CAPTIONS[number]}) if shard else CAPTIONS[number]
                for extension, content in (("json" if shard else "txt", text.encode()), ("png", png(number))):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder / "{00000..00001}.tar"


def ffrecord(folder: Path, samples: list[bytes]) -> Path:
    """What `ffrecord.FileWriter` writes: a head with a checksum of each sample, and the samples."""
    first = 12 + 12 * len(samples)
    offsets = [first + sum(map(len, samples[:index])) for index in range(len(samples))]
    head = struct.pack(f"<Q{len(samples)}I{len(samples)}Q", len(samples), *map(zlib.crc32, samples), *offsets)
    (folder / "train.ffr").write_bytes(struct.pack("<I", zlib.crc32(head)) + head + b"".join(samples))
    return folder / "train.ffr"


def ffrecord_of_dicts(folder: Path) -> Path:
    """Pickled by all protocols that Python 3 has written by default."""
    samples = [
        pickle.dumps({"jpg": png(number), "txt": caption, "size": (80 + number, 70)}, protocol=3 + number % 3)
        for number, caption in enumerate(CAPTIONS)
    ]
    return ffrecord(folder, samples)


def ffrecord_of_folder(folder: Path) -> Path:
    """What `ffrecord.pack_folder` makes of a folder of images: the names come last."""
    files: OrderedDict[str, int] = OrderedDict()
    samples = []
    for number, caption in enumerate(CAPTIONS):
        for extension, content in (("png", png(number)), ("txt", caption.encode())):
            files[f"{number:03d}.{extension}"] = len(samples)
            samples.append(content)
    names = pickle.dumps(OrderedDict(deep=files))
    return ffrecord(folder, [*samples, b"piouhjgbr" + names])


def embedded_parquet(folder: Path) -> Path:
    """The pictures inside the rows, in groups of two rows."""
    table = pa.table({"image": [png(number) for number in range(NUM)], "caption": CAPTIONS})
    pq.write_table(table, folder / "part-0.parquet", row_group_size=2)
    return folder / "part-0.parquet"
