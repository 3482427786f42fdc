"""Aspect buckets: pictures keep their shape, a batch has one, and everything else about a store stays as it is."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddx.cli import main
from ddx.data.buckets import bucket_sizes
from ddx.data.config import PrecomputeConfig
from ddx.data.inspection.statistics import latent_moments
from ddx.data.loader import Loader
from ddx.data.merge import merge
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.data.verify import verify_all
from ddx.progress import NullProgress
from ddx.sampling.config import SampleConfig
from ddx.sampling.run import sample as draw
from ddx.teachers.registry import load_teacher
from ddx.workspace import Workspace
from pipelines import make_stable_diffusion
from stores import shard_bytes
from students import make_student

# Width and height; 0 is a picture that does not decode.
SIZES = (
    *((200, 120), (128, 128), (120, 200), (400, 180), (140, 160), (180, 180), (0, 0), (202, 122)),
    *((600, 200), (160, 128), (128, 256), (222, 132), (192, 128), (128, 192), (260, 260), (198, 122)),
)
EXPECTED = {
    "96x160": [2, 10, 13],
    "112x144": [4],
    "128x128": [1, 5, 14],
    "144x112": [9],
    "160x96": [0, 3, 7, 8, 11, 12, 15],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PrecomputeConfig:
    folder = make_stable_diffusion(tmp_path_factory.mktemp("teacher") / "sd")
    return PrecomputeConfig(
        teacher=str(folder), device="cpu", batch_size=2, part_rows=6, resolution=128, max_aspect=2.0, bucket_step=16
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    images = []
    for width, height in SIZES:
        buffer = io.BytesIO()
        if width:
            coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
        images.append(buffer.getvalue())
    path = tmp_path_factory.mktemp("source") / "pictures.parquet"
    pq.write_table(pa.table({"image": images, "text": [f"number {row}" for row in range(len(SIZES))]}), path)
    return path


@pytest.fixture(scope="module")
def store(config: PrecomputeConfig, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(precompute(replace(config, out=tmp_path_factory.mktemp("store") / "b.zarr"), [str(source)]))


def members(store: Store) -> dict[str, list[int]]:
    numbers = store.array("bucket")
    return {str(it.name): np.flatnonzero(numbers == place).tolist() for place, it in enumerate(store.buckets)}


def test_a_picture_is_in_the_bucket_that_is_nearest_to_its_shape(store: Store, source: Path) -> None:
    assert members(store) == EXPECTED
    assert store.summary()["buckets"] == {name: len(rows) for name, rows in EXPECTED.items()}
    assert store.rows_table()["status"].to_pylist() == ["ok" if width else "no_image" for width, _ in SIZES]
    crop = store.rows_table()["crop"].to_pylist()[3]
    assert crop[2] / crop[3] == pytest.approx(160 / 96)
    # Parts 0 and 2 have no picture of this shape: there is an index that says so, and nothing else.
    sizes = {path.name: path.stat().st_size for path in (store.path / "buckets" / "144x112" / "latents").iterdir()}
    assert sizes["c.0.0.0.0"] == sizes["c.2.0.0.0"] == 6 * 16 + 4 < sizes["c.1.0.0.0"]


def test_latents_are_those_of_the_picture_in_its_shape(store: Store, source: Path, config: PrecomputeConfig) -> None:
    teacher = load_teacher(config.teacher, device="cpu")
    table, rows = pq.read_table(source), store.rows_table()["crop"].to_pylist()
    for row, name in ((0, "160x96"), (2, "96x160"), (9, "144x112")):
        width, height = map(int, name.split("x"))
        left, top, wide, high = rows[row]
        picture = Image.open(io.BytesIO(table["image"][row].as_py())).convert("RGB")
        box = (left, top, left + wide, top + high)
        cropped = np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))
        expected = teacher.encode_images(torch.from_numpy(cropped[None])).numpy()[0]
        found = store.array(f"buckets/{name}/latents")[row]
        assert found.shape == expected.shape == (4, height // 8, width // 8)
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_batch_has_one_shape_and_every_row_comes_as_often(store: Store) -> None:
    of_row = {row: name for name, rows in EXPECTED.items() for row in rows}
    halves = [Loader(store, 4, seed=5, rank=rank, world=2) for rank in (0, 1)]
    loader, counts, shapes = Loader(store, 4, seed=5), Counter[int](), []
    for _ in range(15):  # four epochs of fifteen rows
        batch = next(loader)
        rows = batch.rows.tolist()
        (name,) = {of_row[row] for row in rows}
        for sample, row in enumerate(rows):
            assert np.array_equal(batch.latents[sample].numpy(), store.array(f"buckets/{name}/latents")[row])
        assert torch.equal(batch.latents, torch.cat([next(half).latents for half in halves]))
        counts.update(rows)
        shapes.append(tuple(batch.latents.shape[2:]))
    # What is left of a bucket after its last whole batch comes with the next epochs.
    assert set(counts) == set(of_row) and max(counts.values()) <= 5
    assert len(set(shapes)) == 5
    resumed = Loader(store, 4, seed=5, position=7)
    assert next(resumed).latents.shape[2:] == shapes[7]


def test_fetched_then_encoded_or_taken_up_again_it_is_the_same_store(
    config: PrecomputeConfig, source: Path, store: Store, tmp_path: Path
) -> None:
    apart = replace(config, out=tmp_path / "apart.zarr")
    precompute(replace(apart, stage="fetch"), [str(source)])
    precompute(replace(apart, stage="encode"), [str(source)])
    assert shard_bytes(tmp_path / "apart.zarr") == shard_bytes(store.path)
    precompute(replace(apart, retry=("no_image",)), [str(source)])
    assert shard_bytes(tmp_path / "apart.zarr") == shard_bytes(store.path)


def test_stores_with_buckets_are_verified_merged_and_added_to(
    config: PrecomputeConfig, source: Path, store: Store, tmp_path: Path
) -> None:
    wide = replace(config, where="text in ('number 0', 'number 9', 'number 13')")
    other = precompute(replace(wide, out=tmp_path / "wide.zarr"), [str(source)])
    merged = Store(merge([store.path, other], tmp_path / "merged.zarr"))
    grown = tmp_path / "grown.zarr"
    shutil.copytree(store.path, grown)
    precompute(replace(wide, out=grown, append=True), [str(source)])
    assert shard_bytes(grown) == shard_bytes(merged.path)
    assert merged.bucket_counts() == {"96x160": 4, "112x144": 1, "128x128": 3, "144x112": 2, "160x96": 8}
    assert verify_all(merged.path, merged.num_parts, NullProgress()).damaged == []
    shard = merged.path / "buckets" / "160x96" / "latents" / "c.3.0.0.0"
    assert np.array_equal(merged.array("buckets/160x96/latents")[18], store.array("buckets/160x96/latents")[0])
    shard.unlink()
    (damage,) = verify_all(merged.path, merged.num_parts, NullProgress()).damaged
    assert damage.file == "buckets/160x96/latents/c.3.0.0.0"


def test_flips_and_variances_have_buckets_too(config: PrecomputeConfig, source: Path, tmp_path: Path) -> None:
    every = replace(config, out=tmp_path / "every.zarr", flip=True, posterior="params")
    store = Store(precompute(every, [str(source)]))
    for kind in ("latents", "latents_flip", "logvar", "logvar_flip"):
        assert store.array(f"buckets/160x96/{kind}")[EXPECTED["160x96"]].any(axis=(1, 2, 3)).all()
        assert f"buckets/160x96/{kind}" not in store.summary()["bytes"] and store.summary()["bytes"][kind]
    batch = next(Loader(store, 4, seed=1))
    assert batch.latents.isfinite().all() and batch.latents.any()


def test_statistics_read_every_bucket(store: Store) -> None:
    moments = latent_moments(store, [1, 2, 3])
    values = [
        store.array(f"buckets/{name}/latents")[row].reshape(4, -1).astype(np.float64)
        for row, name in ((1, "128x128"), (2, "96x160"), (3, "160x96"))
    ]
    assert np.allclose(moments.mean, np.concatenate(values, axis=1).mean(1))


def test_sizes_are_symmetric_and_never_larger_than_the_square() -> None:
    assert bucket_sizes(1024, 1.8, 64)[-4:] == [(1088, 960), (1152, 896), (1216, 832), (1344, 768)]
    for resolution, most, step in ((512, 2.0, 64), (512, 3.0, 32), (500, 2.0, 100), (64, 2.0, 8)):
        sizes = bucket_sizes(resolution, most, step)
        assert sorted((height, width) for width, height in sizes) == sorted(sizes)
        assert all(width * height <= resolution**2 and width <= most * height for width, height in sizes)


def test_a_student_is_distilled_of_batches_of_many_shapes(
    store: Store, config: PrecomputeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("distill", "--method", "lcm", "--teacher", config.teacher, "--resolution", 128, "--data", store.path)
    steps = ("--train-steps", 6, "--batch-size", 2, "--device", "cpu", "--workspace", tmp_path)
    assert main.run([str(word) for word in (*words, *steps, "--set", "sample_every=0")]) == 0
    (index,) = (tmp_path / "students").glob("*/model_index.json")
    record, card = json.loads((index.parent / "run.json").read_text()), (index.parent / "README.md").read_text()
    assert [f"{width}x{height}" for width, height in record["buckets"]] == list(EXPECTED)
    assert "| trained at | 128x128, 144x112, 112x144, 160x96, 96x160 |" in card
    assert "height=128,\n    width=128," in card

    capsys.readouterr()
    drawn = ["sample", "--prompt", "a", "--prompt", "b", "--num-images", "2", "--json", "--workspace", str(tmp_path)]
    assert main.run([*drawn, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == "128x128, 144x112, 112x144, 160x96"
    sizes = [(128, 128), (144, 112), (112, 144), (160, 96)]
    for more, expected in (([], sizes), (["--batch-size", "4", "--size", "96x96"], [(96, 96)] * 4)):
        assert main.run([*drawn, "--device", "cpu", *more]) == 0
        out, err = capsys.readouterr()
        assert [Image.open(picture["path"]).size for picture in json.loads(out)["images"]] == expected
        assert err.count("and not at 96x96") == bool(more)


def test_a_batch_of_pictures_has_one_size(tmp_path: Path) -> None:
    student = make_student("eps", tmp_path / "student", buckets=[[64, 64], [96, 64]])
    asked = SampleConfig(student=student, prompt=("a", "b", "c"), out=tmp_path / "alone", device="cpu")
    alone = draw(asked, Workspace(tmp_path))
    together = draw(replace(asked, batch_size=4, out=tmp_path / "together"), Workspace(tmp_path))
    for one, other in zip(alone.pictures, together.pictures, strict=True):
        assert one.path.name == other.path.name and one.prompt == other.prompt
        pictures = [np.asarray(Image.open(path), int) for path in (one.path, other.path)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 2
    grid = np.asarray(Image.open(alone.grid))
    assert grid.shape == (2 * 66 - 2, 2 * 98 - 2, 3)
    assert (grid[:64, :16] == 255).all() and np.array_equal(grid[:64, 16:80], Image.open(alone.pictures[0].path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-aspect", "0.5"], "below 1"),
        (["--bucket-step", "64"], "--max-aspect"),
        (["--max-aspect", "2", "--bucket-step", "24"], "--bucket-step 16"),
        (["--max-aspect", "1.1", "--bucket-step", "64"], "leaves one bucket"),
    ],
)
def test_wrong_settings_are_one_line_and_its_cure(
    words: list[str], said: str, config: PrecomputeConfig, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["precompute", str(source), "--teacher", config.teacher, "--resolution", "128", "--device", "cpu"]
    assert main.run([*line, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "hint:" in error
