"""zarrs, the Zarr of Rust, reads every array that a store can have, and reads what zarr-python reads.

That zarr-python reads what was encoded is `test_contents.py`'s to say. `make test-zarrs` runs this one: it builds
`tests/zarrs/`, which takes minutes.
"""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from ddx._core import StoreWriter
from ddx.data.buckets import Bucket
from ddx.data.config import PrecomputeConfig
from ddx.data.layout import Sizes, array_specs
from ddx.data.precompute import precompute
from ddx.data.precompute.part_writer import raw
from pipelines import make_stable_diffusion
from stores import CAPTIONS, write_pairs

READER = Path(__file__).resolve().parents[2] / "zarrs"
ALWAYS = {
    *("latents", "text/tokens", "text/offset", "text/length", "text/null"),
    *(f"text/validation/{name}" for name in ("tokens", "offset", "length")),
}
EVERY_LATENT = {"latents", "latents_flip", "logvar", "logvar_flip"}
SQUARE = Bucket(24, 24, (2, 3, 3))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader() -> list[str]:
    """The command that reads a store with zarrs."""
    manifest = ["--manifest-path", str(READER / "Cargo.toml"), "--locked", "--quiet"]
    done = subprocess.run(["cargo", "build", *manifest], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return ["cargo", "run", *manifest, "--"]


def read(reader: list[str], store: Path, out: Path) -> dict[str, np.ndarray]:
    """Every array of the store as zarrs reads it."""
    done = subprocess.run([*reader, str(store), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    arrays = {}
    for line in map(json.loads, done.stdout.splitlines()):
        path = line["path"]
        arrays[path] = np.fromfile(out / path, np.dtype(line["data_type"])).reshape(line["shape"])
    return arrays


def assert_same(arrays: dict[str, np.ndarray], store: Path) -> None:
    """Bit for bit what zarr-python reads."""
    for name, array in arrays.items():
        expected = zarr.open_array(str(store / name), mode="r")[...]
        assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes(), name
        assert array.any(), f"{name} holds nothing"


def test_a_store_of_one_caption(reader: list[str], teacher_folder: Path, pairs: Path, tmp_path: Path) -> None:
    config = PrecomputeConfig(teacher=str(teacher_folder), out=tmp_path / "x.zarr", part_rows=4, device="cpu")
    store = precompute(config, [str(pairs)])
    arrays = read(reader, store, tmp_path / "read")
    assert set(arrays) == ALWAYS
    assert_same(arrays, store)
    assert (arrays["text/offset"] == -1).any(), "a failed row"


def test_a_store_of_everything(reader: list[str], tmp_path: Path) -> None:
    folder, pairs = make_stable_diffusion(tmp_path / "sd"), write_captions(tmp_path)
    options = {"flip": True, "posterior": "params", "caption_column": ("caption", "other")}
    config = PrecomputeConfig(teacher=str(folder), out=tmp_path / "x.zarr", part_rows=4, device="cpu", **options)
    store = precompute(config, [str(pairs)])
    arrays = read(reader, store, tmp_path / "read")
    assert set(arrays) == ALWAYS | EVERY_LATENT
    assert arrays["text/length"].shape == (7, 2)
    assert_same(arrays, store)


def test_aspect_buckets_and_text_in_eight_bits(reader: list[str], tmp_path: Path) -> None:
    folder, source = make_stable_diffusion(tmp_path / "sd"), tmp_path / "shapes.parquet"
    images = []
    for width, height in ((90, 60), (70, 70), (60, 100), (80, 80), (64, 99)):
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
        images.append(buffer.getvalue())
    pq.write_table(pa.table({"image": images, "caption": list(CAPTIONS)}), source)
    options = {"max_aspect": 2.0, "text_dtype": "float8", "resolution": 64}
    config = PrecomputeConfig(teacher=str(folder), out=tmp_path / "x.zarr", part_rows=4, device="cpu", **options)
    store = precompute(config, [str(source)])
    arrays = read(reader, store, tmp_path / "read")
    buckets = {f"buckets/{name}/latents" for name in ("48x80", "64x64", "80x48")}
    assert set(arrays) == ALWAYS - {"latents"} | buckets | {"bucket", "text/scale"}
    assert_same(arrays, store)


def test_pooled_embeddings(reader: list[str], tmp_path: Path) -> None:
    store = tmp_path / "x.zarr"
    sizes = Sizes(rows=5, part_rows=4, buckets=(SQUARE,), text_width=6, max_tokens=4, pooled_width=7)
    writer = StoreWriter.create(store, json.dumps(array_specs(sizes)), "{}", "", {})
    pooled = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float16)
    shards = {"text/pooled": ([1, 3], raw(pooled))}
    writer.write_part(part=0, first_row=0, rows=4, ok=2, failed={}, shards=shards, files={})
    found = read(reader, store, tmp_path / "read")["text/pooled"]
    assert np.array_equal(found[[1, 3]], pooled)
    assert not found[[0, 2, 4]].any()


def write_captions(folder: Path) -> Path:
    """Seven pictures of two captions each, some of which are missing."""
    path = write_pairs(folder / "pairs.parquet", 7)
    others = [None if row % 3 == 1 else f"{CAPTIONS[-1]} and {row}" for row in range(7)]
    pq.write_table(pq.read_table(path).append_column("other", pa.array(others)), path)
    return path
