"""Rows to batches, seen from Python: pictures equal Pillow's, every row has a status, nothing hangs."""

from __future__ import annotations

import gc
import hashlib
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddx._core import Batch, CoreError, Ingest, Input, PartEnd
from laion import FORMATS, crop_of, encode, serve_laion
from watchdog import PATIENT, WATCHDOG_S

Pixels = npt.NDArray[np.uint8]


def embed(path: Path, pictures: list[bytes | None], captions: list[str | None] | None = None, rows: int = 5) -> Path:
    """Write a parquet with embedded pictures, `rows` a row group."""
    captions = captions if captions is not None else [f"caption {row}" for row in range(len(pictures))]
    cells = [None if picture is None else {"bytes": picture, "path": "x"} for picture in pictures]
    pq.write_table(pa.table({"image": cells, "caption": captions}), path, row_group_size=rows)
    return path


def run(path: Path, **settings: Any) -> tuple[list[Batch], list[PartEnd]]:
    source = Input([str(path)])
    settings = {"sizes": [(64, 64)], "part_rows": 16, "batch_size": 4, **settings}
    parts = range(-(-source.rows // settings["part_rows"]))
    with Ingest(source, parts=list(parts), **settings) as ingest:
        items = list(ingest)
    return [item for item in items if isinstance(item, Batch)], [item for item in items if isinstance(item, PartEnd)]


def pictures_of(batches: list[Batch]) -> Pixels:
    return np.concatenate([np.asarray(batch.images)[: batch.count] for batch in batches])


def reference(encoded: bytes, side: int) -> Pixels:
    """Pillow's answer to the same question."""
    image = Image.open(io.BytesIO(encoded))
    orientation = image.getexif().get(0x0112, 1)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image, dtype=np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    if orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_270)
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS, box=box))


def psnr(a: Pixels, b: Pixels) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# Two decoders may differ in the last bit of JPEG's and WebP's arithmetic, and in how they turn ink into light.
LEAST_PSNR = {"png": 50, "palette": 50, "sixteen": 50, "alpha": 48, "cmyk": 30}


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_equal_pillows(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(7)
    subjects = ("astronaut.png", "retina.jpg", "page.png", "astronaut.png", "page.png")
    pictures = [encode(crop_of(subject, random, 128), kind) for subject in subjects]
    batches, (end,) = run(embed(tmp_path / "a.parquet", list(pictures)))
    assert end.status == ["ok"] * 5, end.detail
    for ours, encoded in zip(pictures_of(batches), pictures, strict=True):
        assert psnr(ours, reference(encoded, 64)) >= LEAST_PSNR.get(kind, 42)
    assert end.hash == [hashlib.sha256(encoded).hexdigest() for encoded in pictures]


def test_a_photograph_shrunk_fractionally_equals_pillows(tmp_path: Path) -> None:
    import skimage.data

    encoded = (Path(skimage.data.__file__).parent / "coffee.png").read_bytes()  # 600 x 400
    batches, (end,) = run(embed(tmp_path / "a.parquet", [encoded]), sizes=[(213, 213)])
    assert (end.width, end.height, end.crop) == ([600], [400], [(100.0, 0.0, 400.0, 400.0)])
    assert psnr(pictures_of(batches)[0], reference(encoded, 213)) >= 50


def test_a_profile_that_says_srgb_or_fits_no_rgb_changes_nothing(tmp_path: Path) -> None:
    from PIL import ImageCms

    lab = ImageCms.createProfile("LAB")
    square = Image.new("RGB", (80, 80), (200, 100, 50))
    for profile in (None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), ImageCms.ImageCmsProfile(lab)):
        out = io.BytesIO()
        square.save(out, "PNG", **({} if profile is None else {"icc_profile": profile.tobytes()}))
        batches, _ = run(embed(tmp_path / "a.parquet", [out.getvalue()]))
        furthest = np.abs(pictures_of(batches)[0].astype(int) - (200, 100, 50)).max()
        assert furthest <= 1


def test_batches_have_one_shape_and_outlive_the_ingest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures: list[bytes | None] = [encode(crop_of("chelsea.png", random, 80), "jpeg") for _ in range(21)]
    pictures[2], pictures[9] = None, b"not a picture"
    captions: list[str | None] = [f"row {row}" for row in range(21)]
    captions[5] = " "
    path = embed(tmp_path / "a.parquet", pictures, captions)
    batches, ends = run(path, decode_threads=3)
    gc.collect()
    arrays = [np.asarray(batch.images) for batch in batches]
    assert {(array.shape, array.dtype.str) for array in arrays} == {((4, 64, 64, 3), "|u1")}
    assert all(array.flags.c_contiguous and array.flags.writeable for array in arrays)
    assert all(not array[batch.count :].any() for array, batch in zip(arrays, batches, strict=True))
    status = [status for end in ends for status in end.status]
    wrong = {2: "no_image", 5: "no_caption", 9: "not_an_image"}
    assert status == [wrong.get(row, "ok") for row in range(21)]
    assert [row for batch in batches for row in batch.rows] == [row for row in range(21) if row not in wrong]
    assert [(end.part, end.first_row, end.num_rows) for end in ends] == [(0, 0, 16), (1, 16, 5)]
    assert ends[1].captions == [[f"row {row}"] for row in range(16, 21)]
    again, _ = run(path, decode_threads=1, prefetch_rows=1)
    assert [np.asarray(batch.images).tobytes() for batch in again] == [array.tobytes() for array in arrays]


def test_urls_of_a_server_with_broken_answers(tmp_path: Path) -> None:
    with serve_laion(tmp_path, rows=64) as laion:
        batches, ends = run(laion.parquet, allow_private_hosts=True, **PATIENT)
        status = [status for end in ends for status in end.status]
        assert [name == "ok" for name in status] == list(laion.ok)
        assert sum(batch.count for batch in batches) == laion.num_ok
        assert "http_404" in status and "decode" in status and "not_an_image" in status and "empty" in status
        assert ends[0].key[:2] == ["0", "1"]
        _, refused = run(laion.parquet)  # loopback is a private host
    assert {status for end in refused for status in end.status} == {"refused_address"}


def test_memory_is_bounded_by_the_budgets(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (75, 100, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((4000, 3000)).save(out, "JPEG", quality=80)
    path = embed(tmp_path / "a.parquet", [out.getvalue()] * 24, rows=4)  # 36 MB each, decoded
    code = f"""
import resource
from ddx._core import Ingest, Input
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
settings = dict(pixel_budget=1, max_pixels=13_000_000, byte_budget=8 << 20, max_body_bytes=4 << 20, decode_threads=4)
ingest = Ingest(Input([{str(path)!r}]), sizes=[(64, 64)], part_rows=24, batch_size=4, parts=[0], **settings)
assert [item.count for item in ingest if hasattr(item, "count")] == [4] * 6
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 200, "one decoded picture at a time, whatever the number of threads"


def test_waiting_releases_the_gil_and_closing_ends_it(tmp_path: Path) -> None:
    with silent_server() as url:
        ingest = waiting_ingest(tmp_path, url)
        errors: list[BaseException] = []

        def wait(ingest: Ingest) -> None:
            try:
                next(ingest)
            except CoreError as error:
                errors.append(error)

        thread = threading.Thread(target=wait, args=(ingest,), daemon=True)
        thread.start()
        time.sleep(0.3)  # returns only if the other thread lets us run
        ingest.close()
        thread.join(WATCHDOG_S)  # the row alone would take twice as long
        assert not thread.is_alive()
        assert errors and "closed" in errors[0].args[0]
        del ingest
        dropped = waiting_ingest(tmp_path, url)
        del dropped


def test_an_interrupt_reaches_a_waiting_process(tmp_path: Path) -> None:
    with silent_server() as url:
        urls_of(tmp_path / "a.parquet", url)
        code = f"""
from ddx._core import Ingest, Input
ingest = Ingest(Input([{str(tmp_path / "a.parquet")!r}]), sizes=[(8, 8)], part_rows=9, batch_size=2, parts=[0],
                allow_private_hosts=True, **{PATIENT!r})
print("waiting", flush=True)
try:
    next(ingest)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert process.wait(WATCHDOG_S) == 0


@pytest.mark.parametrize(
    ("columns", "flag", "hint"),
    [
        ({"url": ["x"], "width": [1]}, {}, "--caption-column"),
        ({"caption": ["x"], "width": [1]}, {}, "--url-column"),
        ({"caption": ["x"], "url": ["x"]}, {"caption_columns": ["nope"]}, "columns listed"),
        ({"caption": [], "url": []}, {}, "one row"),
    ],
)
def test_a_wrong_table_is_refused_with_its_columns_and_the_cure(
    tmp_path: Path, columns: dict[str, list[Any]], flag: dict[str, str], hint: str
) -> None:
    schema = pa.schema([(name, pa.int64() if name == "width" else pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet")
    with pytest.raises(CoreError) as caught:
        Input([str(tmp_path / "a.parquet")], **flag)  # type: ignore[arg-type]
    message, cure, usage = caught.value.args
    assert cure is not None and hint in cure
    assert usage == bool(flag)
    assert not columns["url" if "url" in columns else "caption"] or all(name in message for name in columns)


def urls_of(path: Path, url: str) -> None:
    pq.write_table(pa.table({"url": [url] * 9, "text": ["x"] * 9}), path)


def waiting_ingest(folder: Path, url: str) -> Ingest:
    urls_of(folder / "a.parquet", url)
    source = Input([str(folder / "a.parquet")])
    options: dict[str, Any] = {"allow_private_hosts": True, **PATIENT}
    return Ingest(source, sizes=[(8, 8)], part_rows=9, batch_size=2, parts=[0], **options)


class silent_server:
    """Accepts connections (in the kernel's queue) and never answers."""

    def __enter__(self) -> str:
        self.socket = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/"

    def __exit__(self, *error: object) -> None:
        self.socket.close()
