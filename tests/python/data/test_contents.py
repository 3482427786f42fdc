"""What is in a store is what the teacher computes, and zarr-python reads all of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from ddx._core import Ingest, Input
from ddx.data.config import PrecomputeConfig
from ddx.data.layout import TOKEN_CHUNK
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.precompute.draw import as_condition
from ddx.data.precompute.encode import Text, as_text
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher
from hears import Heard
from pipelines import make_stable_diffusion
from stores import BROKEN, shard_bytes

NUM_ROWS, PART_ROWS, BATCH = 14, 4, 2
FAILED = (*BROKEN, 5)


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(str(teacher_folder))


@pytest.fixture(scope="module")
def store(teacher_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PrecomputeConfig(
        teacher=str(teacher_folder),
        out=tmp_path_factory.mktemp("store") / "pairs.zarr",
        part_rows=PART_ROWS,
        batch_size=BATCH,
        device="cpu",
    )
    return precompute(config, [str(pairs)])


def test_zarr_lists_every_array_without_a_warning(store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        members = dict(zarr.open_group(str(store), mode="r").members(max_depth=None))
    arrays = {name: item for name, item in members.items() if isinstance(item, zarr.Array)}
    assert set(arrays) == {
        *("latents", "text/tokens", "text/offset", "text/length", "text/null"),
        *(f"text/validation/{name}" for name in ("tokens", "offset", "length")),
    }
    assert arrays["latents"].shards[0] == PART_ROWS
    assert arrays["latents"].chunks == (1, 8, 8, 8)
    for name, array in arrays.items():
        alone = zarr.open_array(str(store / name), mode="r")
        assert alone.metadata.to_dict()["shape"] == array.metadata.to_dict()["shape"]
        assert np.array_equal(alone[...], array[...])


def test_latents_are_those_of_the_teacher(store: Path, pairs: Path, teacher: Teacher) -> None:
    latents = zarr.open_array(str(store / "latents"), mode="r")[:]
    seen = []
    parts = list(range(4))
    for item in Ingest(Input([str(pairs)]), sizes=[(64, 64)], part_rows=PART_ROWS, batch_size=BATCH, parts=parts):
        if hasattr(item, "images"):
            expected = teacher.encode_images(torch.from_numpy(np.asarray(item.images))).half().numpy()
            for row, array in zip(item.rows, expected, strict=False):
                assert np.array_equal(latents[row], array), row
            seen += item.rows
    assert set(range(NUM_ROWS)) - set(seen) == set(FAILED)
    assert not latents[list(FAILED)].any()


def test_captions_are_ragged_and_start_on_chunks(store: Path, pairs: Path, teacher: Teacher) -> None:
    group = zarr.open_group(str(store), mode="r")
    tokens, offset, length = (group[f"text/{name}"] for name in ("tokens", "offset", "length"))
    captions = Store(store).rows_table().column("caption").to_pylist()
    for row in range(NUM_ROWS):
        start, num = int(offset[row]), int(length[row])
        if row in FAILED:
            assert (start, num) == (-1, 0)
            continue
        (condition,) = teacher.encode_text([captions[row]])
        expected = condition.tokens[0].half().numpy()
        assert start % TOKEN_CHUNK == 0
        assert start // (tokens.shape[0] // 4) == row // PART_ROWS, "in its part's shard"
        assert np.array_equal(tokens[start : start + num], expected), row
    assert len(set(length[:].tolist())) > 3


def test_null_and_validation_are_those_of_the_teacher(store: Path, teacher: Teacher) -> None:
    opened = Store(store)
    assert torch.equal(opened.null_condition().tokens, teacher.null_condition().tokens.half())
    prompts, conditions = opened.validation()
    assert prompts == list(teacher.validation_prompts)
    for condition, expected in zip(conditions, teacher.encode_text(prompts), strict=True):
        assert torch.equal(condition.tokens, expected.tokens.half())


def test_every_row_has_its_status(store: Path) -> None:
    table = Store(store).rows_table()
    status = table.column("status").to_pylist()
    assert [row for row in range(NUM_ROWS) if status[row] != "ok"] == sorted(FAILED)
    assert status[5] == "no_caption"
    assert table.column("row").to_pylist() == list(range(NUM_ROWS))
    summary = Store(store).summary()
    assert summary["rows"] == NUM_ROWS
    assert summary["ok"] == NUM_ROWS - len(FAILED)
    assert sum(summary["failed"].values()) == len(FAILED)
    assert summary["complete"]
    assert 1.0 <= summary["token_overhead"] < 2.0


def test_a_latent_that_is_not_finite_costs_its_row(
    teacher_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddx.teachers.families.sana import SanaTeacher

    real = SanaTeacher._encode_pixels

    def poisoned(self: SanaTeacher, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        latents, _ = real(self, pixels)
        latents[0, 0, 0, 0] = torch.nan
        latents[1, 0, 0, 0] = 65_520.0
        return latents, None

    monkeypatch.setattr(SanaTeacher, "_encode_pixels", poisoned)
    config = PrecomputeConfig(
        teacher=str(teacher_folder), out=tmp_path / "x.zarr", part_rows=PART_ROWS, batch_size=3, device="cpu"
    )
    summary = Store(precompute(config, [str(pairs)])).summary()
    assert summary["failed"]["non_finite"] == summary["failed"]["float16_range"] == 4  # one batch a part
    assert summary["ok"] + sum(summary["failed"].values()) == NUM_ROWS


def test_embeddings_beyond_float16_are_stored_divided(
    teacher_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddx.teachers.families.sana import SanaTeacher

    real = SanaTeacher.encode_text

    def massive(self: SanaTeacher, prompts: Sequence[str]) -> list[Condition]:
        found = real(self, prompts)
        for condition, prompt in zip(found, prompts, strict=True):
            condition.tokens[..., 0] = 150_000.0 + len(prompt)
        return found

    monkeypatch.setattr(SanaTeacher, "encode_text", massive)
    monkeypatch.setattr(SanaTeacher, "null_condition", lambda self: self.encode_text(["no"])[0])
    config = PrecomputeConfig(
        teacher=str(teacher_folder), out=tmp_path / "x.zarr", part_rows=PART_ROWS, batch_size=BATCH, device="cpu"
    )
    heard = Heard()
    path = precompute(config, [str(pairs)], progress=heard)
    assert sum("larger than float16 holds" in line for line in heard.said) == 1
    opened, before = Store(path), shard_bytes(path)
    assert opened.text_scale == 16.0 and opened.summary()["ok"] == NUM_ROWS - len(FAILED)
    for name in ("text/tokens", "text/null", "text/validation/tokens"):
        array = zarr.open_array(str(path), path=name, mode="r")
        assert array.attrs["text_scale"] == 16.0 and array.dtype == np.float16 and np.isfinite(array[...]).all()
    captions = opened.rows_table().column("caption").to_pylist()
    teacher = load_teacher(str(teacher_folder))

    def close(found: Condition, text: str) -> None:
        expected = teacher.encode_text([text])[0] if text else teacher.null_condition()
        length = expected.tokens.shape[1]
        assert found.tokens.dtype == torch.float32 and int(found.mask.sum()) == length
        torch.testing.assert_close(found.tokens[:, :length], expected.tokens, rtol=2.0**-11, atol=2.0**-20)

    close(opened.null_condition(), "")
    for prompt, condition in zip(*opened.validation(), strict=True):
        close(condition, prompt)
    batch = next(Loader(opened, 4, seed=0))
    for place, row in enumerate(batch.rows.tolist()):
        close(batch.condition.index(slice(place, place + 1)), captions[row])
    text = as_text(teacher.encode_text(["a cat"])[0], 16.0)
    assert isinstance(text, Text)
    close(as_condition(text, 16.0), "a cat")

    # It goes on, and is mended, with the division that it has.
    monkeypatch.setattr("ddx.data.precompute.encode.HEADROOM", 16.0)
    null = next(file for file in (path / "text" / "null").rglob("*") if file.is_file() and file.name != "zarr.json")
    null.write_bytes(b"damaged")
    precompute(replace(config, verify=True, retry=("all",)), [str(pairs)])
    assert shard_bytes(path) == before
    with pytest.raises(UsageError, match="too large for float8"):
        precompute(replace(config, out=tmp_path / "8.zarr", text_dtype="float8"), [str(pairs)])


def test_stable_diffusion_goes_the_same_way(pairs: Path, tmp_path: Path) -> None:
    folder = make_stable_diffusion(tmp_path / "sd")
    config = PrecomputeConfig(teacher=str(folder), out=tmp_path / "x.zarr", part_rows=8, device="cpu")
    store = Store(precompute(config, [str(pairs)]))
    (condition,) = load_teacher(str(folder)).encode_text(["a cat 0"])
    tokens = store.array("text/tokens")[: condition.tokens.shape[1]]
    assert np.array_equal(tokens, condition.tokens[0].half().numpy())
    assert store.latent_shape == (4, 8, 8)
