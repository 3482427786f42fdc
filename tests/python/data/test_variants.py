"""What a store may hold beside one latent and one caption a row: the mirrored picture, a distribution, captions."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from ddx.data.captions import Captions
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.teachers.registry import load_teacher
from hears import Heard
from pipelines import make_stable_diffusion
from stores import shard_bytes
from tiny import Tiny

NUM = 7


SHORT = [None if row == 2 else f"a cat {row}" for row in range(NUM)]
LONG = [None if row in (4, 5) else f"a long sentence about the cat of number {row}, and a dog" for row in range(NUM)]
SHORT[5] = None  # and no long one: the row fails


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stable_diffusion(tmp_path_factory.mktemp("teacher") / "sd")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A parquet of pictures, as they are or mirrored."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (90 + row, 80, 3), dtype=np.uint8)) for row in range(NUM)]

    def write(mirrored: bool) -> Path:
        images = []
        for picture in pictures:
            buffer = io.BytesIO()
            (ImageOps.mirror(picture) if mirrored else picture).save(buffer, "PNG")
            images.append(buffer.getvalue())
        path = folder / f"mirrored-{mirrored}.parquet"
        pq.write_table(pa.table({"image": images, "short": SHORT, "long": LONG, "text": ["x"] * NUM}), path)
        return path

    return write


@pytest.fixture(scope="module")
def config(sd_folder: Path) -> PrecomputeConfig:
    return PrecomputeConfig(teacher=str(sd_folder), device="cpu", batch_size=3, part_rows=4, resolution=64)


@pytest.fixture(scope="module")
def plain(config: PrecomputeConfig, source: Callable[[bool], Path], tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("plain") / "plain.zarr"
    return Store(precompute(replace(config, out=out), [str(source(False))]))


def test_the_flipped_latents_are_those_of_the_mirrored_picture(
    config: PrecomputeConfig, source: Callable[[bool], Path], plain: Store, tmp_path: Path
) -> None:
    both = Store(precompute(replace(config, out=tmp_path / "both.zarr", flip=True), [str(source(False))]))
    other = Store(precompute(replace(config, out=tmp_path / "other.zarr"), [str(source(True))]))
    assert np.array_equal(both.array("latents"), plain.array("latents"))
    # Lanczos sums from left to right, so a mirrored picture is the mirror of the picture up to one grey value.
    error = np.abs(both.array("latents_flip") - other.array("latents")).astype(np.float32)
    assert error.max() < 0.05 * np.abs(other.array("latents")).max()
    assert not np.allclose(both.array("latents_flip"), both.array("latents"), atol=0.05)

    loader = Loader(both, 6, seed=3)
    flips = []
    for _ in range(20):
        batch = next(loader)
        for sample, row in enumerate(batch.rows.tolist()):
            name = "latents_flip" if batch.flipped[sample] else "latents"
            assert np.array_equal(batch.latents[sample].numpy(), both.array(name)[row])
        flips += batch.flipped.tolist()
    assert 30 < sum(flips) < 90
    loader.close()
    assert not next(Loader(plain, 6, seed=3)).flipped.any()


def test_a_distribution_is_stored_or_drawn_from(
    config: PrecomputeConfig, source: Callable[[bool], Path], plain: Store, tmp_path: Path, sd_folder: Path
) -> None:
    store = Store(precompute(replace(config, out=tmp_path / "p.zarr", posterior="params"), [str(source(False))]))
    assert np.array_equal(store.array("latents"), plain.array("latents"))
    mean, deviation = store.array("latents").astype(np.float64), np.exp(0.5 * store.array("logvar").astype(np.float64))
    ranks = [Loader(store, 6, seed=1, rank=rank, world=2) for rank in (0, 1)]
    whole, errors = Loader(store, 6, seed=1), []
    for _ in range(30):
        batch, halves = next(whole), [next(rank) for rank in ranks]
        assert torch.equal(batch.latents, torch.cat([half.latents for half in halves]))
        rows = batch.rows.numpy()
        errors.append((batch.latents.numpy() - mean[rows]) / deviation[rows])
    scaled = np.concatenate(errors)
    assert abs(scaled.mean()) < 0.05 and abs(scaled.std() - 1) < 0.05
    again = Loader(store, 6, seed=1, position=29)
    assert torch.equal(next(again).latents, batch.latents)

    drawn = Store(precompute(replace(config, out=tmp_path / "s.zarr", posterior="sample"), [str(source(False))]))
    ok = [row for row in range(NUM)]
    scaled = (drawn.array("latents")[ok] - mean[ok]) / deviation[ok]
    assert abs(scaled.mean()) < 0.1 and abs(scaled.std() - 1) < 0.1
    assert load_teacher(str(sd_folder), device="cpu").has_posterior


def test_each_of_several_captions_has_its_pooled_embedding(
    config: PrecomputeConfig, source: Callable[[bool], Path], tmp_path: Path
) -> None:
    folder = Tiny("sdxl").make(tmp_path / "sdxl")
    asked = replace(config, teacher=str(folder), out=tmp_path / "two.zarr", caption_column=("short", "long"))
    store, teacher = Store(precompute(asked, [str(source(False))])), load_teacher(folder, device="cpu")
    texts = [{text: teacher.encode_text([text])[0] for text in (SHORT[row], LONG[row]) if text} for row in range(NUM)]
    pooled = store.array("text/pooled")
    assert pooled.shape == (NUM, 2, 24) and not pooled[2, 0].any() and pooled[2, 1].any()
    found = set()
    loader = Loader(store, 6, seed=0)
    for _ in range(20):
        batch = next(loader)
        assert batch.condition.pooled is not None and batch.condition.pooled.shape == (6, 24)
        for sample, row in enumerate(batch.rows.tolist()):
            gaps = {
                text: float((condition.tokens[0] - batch.condition.tokens[sample]).abs().max())
                for text, condition in texts[row].items()
            }
            near = min(gaps, key=lambda text: gaps[text])
            vector = texts[row][near].pooled
            assert vector is not None and gaps[near] < 1e-2
            assert (vector[0] - batch.condition.pooled[sample]).abs().max() < 1e-2
            found.add((row, near == LONG[row]))
    assert {(0, True), (0, False), (2, True)} <= found and (2, False) not in found
    again = shard_bytes(store.path)
    precompute(replace(asked, verify=True), [str(source(False))])
    assert shard_bytes(store.path) == again


def test_a_caption_that_the_encoder_cuts_is_counted(
    config: PrecomputeConfig, source: Callable[[bool], Path], tmp_path: Path
) -> None:
    heard, table = Heard(), pq.read_table(source(False))
    long = ["a cat " * (100 if row in (1, 4) else 3) for row in range(NUM)]
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", [long]), tmp_path / "long.parquet")
    asked = replace(config, out=tmp_path / "long.zarr", caption_column=("text",))
    store = Store(precompute(asked, [str(tmp_path / "long.parquet")], progress=heard))
    rows = store.rows_table()
    assert set(rows["status"].to_pylist()) == {"ok"}
    cut = [row for row, text in enumerate(rows["detail"].to_pylist()) if text]
    assert cut == [1, 4] and "75 of its" in rows["detail"][1].as_py()
    assert any("2 captions are longer than" in line for line in heard.said)


def test_a_row_of_several_captions_draws_one_of_those_it_has(
    config: PrecomputeConfig, source: Callable[[bool], Path], tmp_path: Path
) -> None:
    captions = ("short", "long")
    store = Store(precompute(replace(config, out=tmp_path / "two.zarr", caption_column=captions), [str(source(False))]))
    table = store.rows_table()
    assert table["status"].to_pylist() == ["ok"] * 5 + ["no_caption", "ok"]
    assert table["captions"].to_pylist()[2] == ["", LONG[2]]
    assert table["caption"].to_pylist()[:3] == [SHORT[0], SHORT[1], LONG[2]]
    one = {
        name: Store(
            precompute(replace(config, out=tmp_path / f"{name}.zarr", caption_column=(name,)), [str(source(False))])
        )
        for name in captions
    }
    length = store.array("text/length")
    assert length.shape == (NUM, 2)
    for column, name in enumerate(captions):
        assert np.array_equal(length[:, column], one[name].array("text/length"))
        assert Captions(one[name]).of(torch.tensor([3, 1])) == [(SHORT, LONG)[column][row] for row in (3, 1)]
    tokens = store.array("text/tokens")
    seen = set()
    loader, words = Loader(store, 6, seed=0), Captions(store)
    for _ in range(20):
        batch = next(loader)
        assert batch.captions is not None and batch.captions.dtype == torch.int32
        assert words.of(batch.rows, batch.captions) == [
            (SHORT, LONG)[column][row] for row, column in zip(batch.rows.tolist(), batch.captions.tolist(), strict=True)
        ]
        for sample, row in enumerate(batch.rows.tolist()):
            drawn = batch.condition.tokens[sample][batch.condition.mask[sample]].numpy()
            places = store.array("text/offset")[row]
            matching = [
                column
                for column in (0, 1)
                if places[column] >= 0
                and np.array_equal(drawn, tokens[places[column] : places[column] + length[row, column]])
            ]
            assert matching == [batch.captions[sample]]
            seen.add((row, *matching))
    assert {(0, 0), (0, 1), (2, 1), (4, 0)} <= seen
    assert not {(2, 0), (4, 1)} & seen


def test_everything_at_once_is_taken_up_again_as_it_was(
    config: PrecomputeConfig, source: Callable[[bool], Path], tmp_path: Path
) -> None:
    every = replace(config, flip=True, posterior="params", caption_column=("short", "long"))
    whole = precompute(replace(every, out=tmp_path / "whole.zarr"), [str(source(False))])
    again = precompute(replace(every, out=tmp_path / "again.zarr"), [str(source(False))])
    precompute(replace(every, out=again, retry=("no_caption",)), [str(source(False))])
    assert shard_bytes(again) == shard_bytes(whole)


def test_an_autoencoder_without_a_distribution_is_named(teacher_folder: Path, source: Callable[[bool], Path]) -> None:
    with pytest.raises(UsageError, match="no distribution"):
        precompute(PrecomputeConfig(teacher=str(teacher_folder), posterior="params"), [str(source(False))])
