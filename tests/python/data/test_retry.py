"""Rows that failed are taken up again by their status, and the store becomes what it would have been."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.precompute.retry import matches
from ddx.data.store import Store
from ddx.errors import DdxError
from picture_server import PictureServer, serve_pictures, write_urls
from stores import finish, rank_of_two, shard_bytes
from watchdog import PATIENT_FLAGS, wait_until

NUM_ROWS = 14
FAILS = {1: 404, 2: 500, 5: 500, 9: 503, 10: 404}  # no failure among the last rows: their part stays as it is


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with serve_pictures() as state:
        yield state


@pytest.fixture(scope="module")
def source(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_urls(tmp_path_factory.mktemp("urls") / "urls.parquet", [server.url(row) for row in range(NUM_ROWS)])


@pytest.fixture
def store(server: PictureServer, source: Path, config: PrecomputeConfig, tmp_path: Path) -> Path:
    """A store in which the rows of FAILS failed; all would be answered now."""
    server.status = dict(FAILS)
    path = precompute(replace(config, out=tmp_path / "failed.zarr"), [str(source)])
    server.status = {}
    server.asked.clear()
    return path


@pytest.fixture
def whole(server: PictureServer, source: Path, config: PrecomputeConfig, tmp_path: Path) -> Callable[..., Path]:
    """A store of a first run against a server that fails for `status` only."""

    def whole(status: dict[int, int]) -> Path:
        server.status = status
        path = precompute(replace(config, out=tmp_path / "whole.zarr"), [str(source)])
        server.status = {}
        return path

    return whole


def test_only_the_rows_of_the_status_are_asked_for_and_nothing_shows_that_they_ever_failed(
    server: PictureServer, source: Path, config: PrecomputeConfig, store: Path, whole: Callable[..., Path]
) -> None:
    last = (store / "latents" / "c.3.0.0.0").stat()
    precompute(replace(config, out=store, retry=("http_5*",)), [str(source)])
    assert sorted(server.asked) == [2, 5, 9]
    assert (store / "latents" / "c.3.0.0.0").stat() == last, "a part without such rows is left alone"
    assert Store(store).summary()["failed"] == {"http_404": 2}
    assert json.loads((store / "run.json").read_text())["failed"] == {"http_404": 2}
    expected = whole({1: 404, 10: 404})
    assert shard_bytes(store) == shard_bytes(expected)
    assert shard_bytes(store / "_ddx" / "errors") == shard_bytes(expected / "_ddx" / "errors")


def test_a_row_that_fails_again_has_its_new_status(
    server: PictureServer, source: Path, config: PrecomputeConfig, store: Path, whole: Callable[..., Path]
) -> None:
    server.status = {5: 410}
    precompute(replace(config, out=store, retry=("all",)), [str(source)])
    assert sorted(server.asked) == sorted(FAILS)
    assert shard_bytes(store) == shard_bytes(whole({5: 410}))
    table = Store(store).rows_table()
    assert (table["status"][5].as_py(), table["source"][5].as_py()) == ("http_410", server.url(5))


def test_nothing_to_take_up_leaves_the_store_alone(
    source: Path, config: PrecomputeConfig, store: Path, server: PictureServer
) -> None:
    times = {path: path.stat().st_mtime_ns for path in store.rglob("*.*") if path.suffix != ".lock"}
    precompute(replace(config, out=store, retry=("timeout",)), [str(source)])
    assert not server.asked
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_store_that_is_being_read_is_not_changed(source: Path, config: PrecomputeConfig, store: Path) -> None:
    before = shard_bytes(store)
    loader = Loader(store, 2, seed=0)
    with pytest.raises(DdxError, match="is being read"):
        precompute(replace(config, out=store, retry=("all",)), [str(source)])
    assert shard_bytes(store) == before
    loader.close()
    precompute(replace(config, out=store, retry=("all",)), [str(source)])
    assert Store(store).num_ok == NUM_ROWS


def test_two_ranks_take_rows_up_together(
    ddx: Callable[..., Any],
    source: Path,
    config: PrecomputeConfig,
    store: Path,
    whole: Callable[..., Path],
) -> None:
    words = (*line(source, config, store), "--retry", "all")
    for process in [ddx(*words, environment=rank_of_two(number)) for number in (0, 1)]:
        finish(process)
    assert shard_bytes(store) == shard_bytes(whole({}))


def line(source: Path, config: PrecomputeConfig, store: Path) -> tuple[object, ...]:
    options = ("--allow-private-hosts", "--device", "cpu", "--part-rows", 4, "--batch-size", 3, "--retries", 0)
    return ("precompute", source, "--teacher", config.teacher, "--out", store, *options, *PATIENT_FLAGS)


def test_the_parts_of_a_rank_that_is_gone_are_taken_over(
    ddx: Callable[..., Any], source: Path, config: PrecomputeConfig, whole: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "two.zarr"

    def rank(number: int) -> Any:
        return ddx(*line(source, config, store), environment=rank_of_two(number))

    second = rank(1)
    lock = store / "_ddx" / "writer-1.lock"
    wait_until(lock.exists, second)
    second.kill()  # it waits for the first one, which makes the store
    finish(second, -signal.SIGKILL)
    finish(rank(0))
    assert shard_bytes(store) == shard_bytes(whole({}))


def test_a_row_that_comes_back_makes_its_later_twin_the_duplicate(
    server: PictureServer, config: PrecomputeConfig, tmp_path: Path
) -> None:
    source = write_urls(tmp_path / "twins.parquet", [server.url(row) for row in (0, 1, 2, 3, 4, 101, 102)])
    once = replace(config, dedup="content")

    def statuses(store: Path) -> list[str]:
        return list(Store(store).rows_table()["status"].to_pylist())

    server.status = {1: 500}
    store = precompute(replace(once, out=tmp_path / "retried.zarr"), [str(source)])
    assert statuses(store) == ["ok", "http_500", *["ok"] * 4, "duplicate"]
    server.status = {}
    server.asked.clear()
    precompute(replace(once, out=store, retry=("all",)), [str(source)])
    assert server.asked == [1], "a duplicate would be one again"
    assert statuses(store) == [*["ok"] * 5, "duplicate", "duplicate"]
    assert shard_bytes(store) == shard_bytes(precompute(replace(once, out=tmp_path / "whole.zarr"), [str(source)]))


def test_statuses_and_patterns() -> None:
    assert matches("timeout", ("timeout",)) and matches("http_503", ("dns", "http_5*")) and matches("dns", ("all",))
    assert matches("duplicate", ("dup*",)) and not matches("duplicate", ("all",))
    assert not matches("http_404", ("http_5*",)) and not matches("ok", ("all", "ok", "*"))


def test_a_status_that_nobody_has_is_refused(
    source: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["precompute", str(source), "--teacher", str(teacher_folder), "--workspace", str(tmp_path)]
    assert main.run([*words, "--retry", "timeouts"]) == 2
    assert "did you mean `timeout`" in capsys.readouterr().err
