"""A LAION of our own: real photographs and drawings behind URLs of a server on this machine, some rows broken.

The pictures are crops of the sample images that scikit-image carries, in mixed formats, colour modes and sizes.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SUBJECTS = {
    "astronaut.png": "a portrait of an astronaut in an orange suit",
    "brick.png": "a brick wall",
    "camera.png": "a man with a camera on a tripod",
    "cell.png": "a cell under the microscope",
    "chelsea.png": "a tabby cat",
    "clock_motion.png": "a blurred clock",
    "coffee.png": "a cup of coffee on a wooden table",
    "coins.png": "ancient coins in rows",
    "color.png": "patches of colour",
    "grass.png": "grass from above",
    "gravel.png": "gravel",
    "horse.png": "a drawing of a horse in black and white",
    "hubble_deep_field.jpg": "galaxies in the night sky",
    "ihc.png": "stained tissue",
    "logo.png": "a drawing of a snake in colour",
    "moon.png": "the surface of the moon",
    "motorcycle_left.png": "a motorcycle in a garage",
    "motorcycle_right.png": "a motorcycle seen from the right",
    "page.png": "a printed page",
    "phantom.png": "a drawing of ellipses in grey",
    "retina.jpg": "the retina of an eye",
    "rocket.jpg": "the launch of a rocket",
    "text.png": "handwriting on paper",
}
FORMATS = ("jpeg", "progressive", "png", "webp", "grey", "palette", "alpha", "cmyk", "rotated", "sixteen")
BROKEN = ("missing", "truncated", "html", "empty", "bomb")


@dataclass(frozen=True)
class Laion:
    """A parquet file in LAION's columns whose URLs are being served."""

    parquet: Path
    url: str
    ok: tuple[bool, ...]  # which rows hold a picture that opens

    @property
    def num_ok(self) -> int:
        """How many rows hold a picture that opens."""
        return sum(self.ok)


@contextlib.contextmanager
def serve_laion(folder: Path, *, rows: int = 240, seed: int = 0, min_side: int = 96) -> Iterator[Laion]:
    """Write `rows` rows into `folder`/laion.parquet, one in sixteen of them broken, and serve their pictures."""
    served, random = folder / "served", np.random.default_rng(seed)
    served.mkdir(parents=True)
    names, captions, ok = [], [], []
    for row in range(rows):
        subject = list(SUBJECTS)[row % len(SUBJECTS)]
        kind = FORMATS[row % len(FORMATS)]
        broken = BROKEN[row // 16 % len(BROKEN)] if row % 16 == 15 else None
        name = f"{row:05d}-{broken or kind}"
        if broken != "missing":
            good = encode(crop_of(subject, random, min_side), kind)
            (served / name).write_bytes(_break(good, broken) if broken else good)
        names.append(name)
        captions.append(SUBJECTS[subject])
        ok.append(broken is None)
    with _server(served) as url:
        parquet = folder / "laion.parquet"
        columns = {
            "SAMPLE_ID": list(range(rows)),
            "URL": [f"{url}/{name}" for name in names],
            "TEXT": captions,
            "WIDTH": random.integers(96, 700, rows),
            "HEIGHT": random.integers(96, 700, rows),
            "similarity": random.uniform(0.28, 0.4, rows),
            "hash": random.integers(-(2**62), 2**62, rows),
            "punsafe": random.uniform(0, 0.1, rows),
            "pwatermark": random.uniform(0, 0.5, rows),
            "AESTHETIC_SCORE": random.uniform(4.5, 7.0, rows),
        }
        pq.write_table(pa.table(columns), parquet, row_group_size=100)
        yield Laion(parquet, url, tuple(ok))


def crop_of(subject: str, random: np.random.Generator, min_side: int) -> Image.Image:
    """Return a random crop of one of scikit-image's pictures as RGB, between `min_side` and 640 pixels a side."""
    import skimage.data

    with Image.open(Path(skimage.data.__file__).parent / subject) as opened:
        image = opened.convert("RGB")
    width, height = (int(random.integers(max(side // 2, 1), side + 1)) for side in image.size)
    left, top = int(random.integers(0, image.width - width + 1)), int(random.integers(0, image.height - height + 1))
    image = image.crop((left, top, left + width, top + height))
    side = int(random.integers(min_side, 400))
    scale = side / min(image.size)
    size = (max(round(image.width * scale), min_side), max(round(image.height * scale), min_side))
    return image.resize((min(size[0], 640), min(size[1], 640)), Image.Resampling.LANCZOS)


def encode(image: Image.Image, kind: str) -> bytes:
    """Return an RGB picture's bytes as one of FORMATS."""
    out = io.BytesIO()
    if kind == "jpeg":
        image.save(out, "JPEG", quality=88)
    elif kind == "progressive":
        image.save(out, "JPEG", quality=75, progressive=True)
    elif kind == "png":
        image.save(out, "PNG")
    elif kind == "webp":
        image.save(out, "WEBP", quality=85)
    elif kind == "grey":
        image.convert("L").save(out, "JPEG", quality=85)
    elif kind == "palette":
        image.quantize(64).save(out, "PNG")
    elif kind == "alpha":
        image.putalpha(image.convert("L"))
        image.save(out, "PNG")
    elif kind == "cmyk":
        image.convert("CMYK").save(out, "JPEG", quality=88)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=88, exif=exif)
    elif kind == "sixteen":
        grey = np.asarray(image.convert("L"), dtype=np.uint16)
        Image.fromarray(grey * 257).save(out, "PNG")
    else:
        raise ValueError(kind)
    return out.getvalue()


def _break(good: bytes, how: str) -> bytes:
    if how == "truncated":
        return good[: min(len(good) // 2, 300)]
    if how == "html":
        return b"<!doctype html><title>gone</title><p>This picture has moved."
    if how == "empty":
        return b""
    if how == "bomb":
        # A PNG header that claims 60000 x 60000 pixels.
        return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xea\x60\x00\x00\xea\x60\x08\x02\x00\x00\x00" + bytes(64)
    raise ValueError(how)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
