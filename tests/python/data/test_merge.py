"""A merged store is what one would be that was added to, and nothing is encoded for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.merge import merge
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.data.verify import verify_all
from ddx.errors import DdxError, UsageError
from ddx.progress import NullProgress
from picture_server import PictureServer, serve_pictures, write_urls
from pipelines import make_sana
from stores import shard_bytes
from watchdog import wait_until

NUM_ROWS = 10
FAILS = {2: 404, 8: 404}


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with serve_pictures(FAILS) as state:
        yield state


@pytest.fixture(scope="module")
def sources(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The second has pictures twice."""
    folder = tmp_path_factory.mktemp("urls")
    first = write_urls(folder / "first.parquet", [server.url(row) for row in range(NUM_ROWS)])
    second = write_urls(folder / "second.parquet", [server.url(row) for row in (20, 21, 22, 120, 23, 24, 122)])
    return first, second


@pytest.fixture(scope="module")
def stores(
    sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stores")
    first = precompute(replace(config, out=folder / "first.zarr"), [str(sources[0])])
    return first, precompute(replace(config, out=folder / "second.zarr", dedup="content"), [str(sources[1])])


@pytest.fixture(scope="module")
def appended(
    stores: tuple[Path, Path],
    sources: tuple[Path, Path],
    config: PrecomputeConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The first store, with the rows of the second added by their encoding."""
    store = shutil.copytree(stores[0], tmp_path_factory.mktemp("appended") / "both.zarr")
    return precompute(replace(config, out=store, append=True, dedup="content"), [str(sources[1])])


def whole_bytes(store: Path) -> dict[str, bytes]:
    """The store's files, and those of its parts' rows and records."""
    folders = ("commit", "rows", "errors")
    inner = {name: shard_bytes(store / "_ddx" / name) for name in folders}
    return shard_bytes(store) | {f"{folder}/{name}": data for folder in folders for name, data in inner[folder].items()}


def test_merged_is_appended(stores: tuple[Path, Path], appended: Path, tmp_path: Path) -> None:
    merged = merge(stores, tmp_path / "merged.zarr")
    assert whole_bytes(merged) == whole_bytes(appended)
    details = Store(merged).rows_table()["detail"].to_pylist()
    assert [text for text in details if text.startswith("the same image")] == [
        "the same image as row 12",
        "the same image as row 14",
    ]
    assert verify_all(merged, 5, NullProgress()).damaged == []
    assert json.loads((merged / "run.json").read_text())["merged"] == [str(path) for path in stores]


def test_batches_hold_the_rows_of_either(stores: tuple[Path, Path], tmp_path: Path) -> None:
    merged = merge(stores, tmp_path / "merged.zarr")

    def by_row(store: Path, shift: int = 0) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        loader, rows = Loader(store, 1, seed=0), {}
        for batch in islice(loader, loader.num_rows):
            rows[int(batch.rows[0]) + shift] = batch.latents[0], batch.condition.tokens[0]
        loader.close()
        return rows

    expected = {**by_row(stores[0]), **by_row(stores[1], 12)}
    found = by_row(merged)
    assert found.keys() == expected.keys() and len(found) == NUM_ROWS - len(FAILS) + 5
    for row, arrays in found.items():
        assert all(map(torch.equal, arrays, expected[row]))


def test_shards_are_shared_and_the_merged_stores_stay_as_they_are(
    stores: tuple[Path, Path], sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    before = [whole_bytes(store) for store in stores]
    merged = merge(stores, tmp_path / "merged.zarr")
    for name, own in (("latents/c.3.0.0.0", "latents/c.0.0.0.0"), ("text/tokens/c.4.0", "text/tokens/c.1.0")):
        assert os.path.samefile(merged / name, stores[1] / own)
    assert not os.path.samefile(merged / "text/offset/c.3", stores[1] / "text/offset/c.0")
    # Rows of the merged store that are made anew are its own.
    (merged / "_ddx" / "commit" / "3").unlink()
    (merged / "rows.parquet").unlink()
    precompute(replace(config, out=merged, dedup="content"), [str(sources[1])])
    assert Store(merged).is_complete
    assert not os.path.samefile(merged / "latents/c.3.0.0.0", stores[1] / "latents/c.0.0.0.0")
    assert [whole_bytes(store) for store in stores] == before


def test_onto_another_file_system_shards_are_copied(
    stores: tuple[Path, Path], appended: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == stores[0].stat().st_dev:
        pytest.skip("there is no second file system")
    out = memory / f"ddx-test-{os.getpid()}.zarr"
    try:
        assert whole_bytes(merge(stores, out)) == whole_bytes(appended)
        assert (out / "latents/c.0.0.0.0").stat().st_nlink == 1
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_merged_stores_are_merged_and_added_to(
    stores: tuple[Path, Path], sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    third = precompute(replace(config, out=tmp_path / "third.zarr", where="TEXT != ''", limit=5), [str(sources[0])])
    left = merge([merge(stores, tmp_path / "two.zarr"), third], tmp_path / "left.zarr")
    at_once = merge([*stores, third], tmp_path / "at-once.zarr")
    assert whole_bytes(left) == whole_bytes(at_once)
    assert [segment.first_part for segment in Store(left).segments] == [0, 3, 5]
    precompute(replace(config, out=left, append=True, limit=2), [str(sources[1])])
    assert Store(left).rows == NUM_ROWS + 7 + 5 + 2
    assert verify_all(left, 8, NullProgress()).damaged == []


def test_a_merge_that_was_stopped_goes_on(
    stores: tuple[Path, Path], appended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged.zarr"
    in_the_way = out / "_ddx" / "rows" / ".4.parquet.tmp"
    in_the_way.mkdir(parents=True)
    with pytest.raises(DdxError, match="cannot write"):
        merge(stores, out)
    in_the_way.rmdir()
    with pytest.raises(DdxError, match="not complete: 4 of 5 parts"):
        Loader(out, 2, seed=0)
    kept = {path: path.stat().st_mtime_ns for path in (out / "_ddx" / "commit").iterdir()}
    line = ["merge", *map(str, stores), "--out", str(out), "--json"]
    assert main.run(line) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == NUM_ROWS + 7
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert whole_bytes(out) == whole_bytes(appended)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file() and path.suffix != ".lock"}
    assert main.run(line) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_merge_that_is_killed_goes_on(
    ddx: Callable[..., Any], server: PictureServer, config: PrecomputeConfig, tmp_path: Path
) -> None:
    small = replace(config, part_rows=1)
    parts = []
    for name, rows in (("a", range(30, 50)), ("b", range(50, 70))):
        urls = write_urls(tmp_path / f"{name}.parquet", [server.url(row) for row in rows])
        parts.append(precompute(replace(small, out=tmp_path / f"{name}.zarr"), [str(urls)]))
    whole = merge(parts, tmp_path / "whole.zarr")
    out = tmp_path / "killed.zarr"
    process = ddx("merge", *parts, "--out", out)
    wait_until((out / "_ddx" / "commit" / "3").exists, process)
    process.kill()
    process.communicate()
    assert main.run(["merge", *map(str, parts), "--out", str(out)]) == 0
    assert whole_bytes(out) == whole_bytes(whole)


def test_the_commands_that_made_the_stores_find_their_rows(
    stores: tuple[Path, Path], sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    out = merge(stores, tmp_path / "merged.zarr")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file() and path.suffix != ".lock"}
    precompute(replace(config, out=out), [str(sources[0])])
    precompute(replace(config, out=out, dedup="content"), [str(sources[1])])
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("key", "settings"), [("dtype", {"dtype": "bf16"}), ("flip", {"flip": True}), ("part_rows", {"part_rows": 2})]
)
def test_stores_that_do_not_fit_are_refused_by_name(
    stores: tuple[Path, Path],
    sources: tuple[Path, Path],
    config: PrecomputeConfig,
    tmp_path: Path,
    key: str,
    settings: dict[str, Any],
) -> None:
    other = precompute(replace(config, out=tmp_path / "other.zarr", limit=3, **settings), [str(sources[1])])
    with pytest.raises(UsageError, match=f"its {key} is "):
        merge([stores[0], other], tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


def test_another_teacher_is_refused(
    stores: tuple[Path, Path], sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    teacher = make_sana(tmp_path / "teacher", seed=1)
    other = precompute(replace(config, out=tmp_path / "o.zarr", teacher=str(teacher)), [str(sources[1])])
    with pytest.raises(UsageError, match="its weights is "):
        merge([stores[0], other], tmp_path / "x.zarr")


def test_what_makes_no_sense_is_refused(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.zarr"
    for sources, place, error in (
        ([stores[0]], out, "nothing to merge"),
        ([stores[0], stores[1], stores[0]], out, "are in the stores twice"),
        (stores, stores[1], "is one of the stores to merge"),
        (stores, shutil.copytree(stores[0], tmp_path / "copy.zarr"), "is not the merge of these stores"),
        ([stores[0], tmp_path / "nowhere.zarr"], out, "there is no store at"),
    ):
        with pytest.raises(UsageError, match=error):
            merge(sources, place)
    (tmp_path / "copy.zarr" / "rows.parquet").unlink()
    with pytest.raises(DdxError, match="is not complete"):
        merge([tmp_path / "copy.zarr", stores[1]], out)
    torn = shutil.copytree(stores[1], tmp_path / "torn.zarr")
    shard = torn / "latents" / "c.1.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DdxError, match=r"c\.1\.0\.0\.0 has not the size"):
        merge([stores[0], torn], out)
    assert main.run(["merge", *map(str, stores)]) == 2
    assert "--out" in capsys.readouterr().err


def test_dry_run_writes_nothing(stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.zarr"
    assert main.run(["merge", *map(str, stores), "--out", str(out), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_parts"] == 5
    assert not out.exists()
