"""A precompute that is stopped loses at most the part at hand, and ends with the bytes of one that was not."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.errors import UsageError
from picture_server import serve_pictures, write_urls
from stores import finish, rank_of_two, shard_bytes
from watchdog import PATIENT, PATIENT_FLAGS, wait_until

Ddx = Callable[..., Any]
NUM_ROWS, PART_ROWS = 24, 4
SLOW_FROM_ROW = 10


@dataclass(frozen=True)
class Source:
    """A parquet of URLs; the pictures from SLOW_FROM_ROW on are only sent once `released` is set."""

    path: Path
    released: threading.Event


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with serve_pictures({6: 404}, held_from=SLOW_FROM_ROW) as server:
        path = tmp_path_factory.mktemp("urls") / "urls.parquet"
        yield Source(write_urls(path, [server.url(row) for row in range(NUM_ROWS)]), server.released)


@pytest.fixture
def source(served: Source) -> Source:
    served.released.clear()
    return served


@pytest.fixture(scope="module")
def config(teacher_folder: Path) -> PrecomputeConfig:
    options: dict[str, Any] = {"device": "cpu", "part_rows": PART_ROWS, "batch_size": 3, **PATIENT}
    return PrecomputeConfig(teacher=str(teacher_folder), allow_private_hosts=True, **options)


@pytest.fixture(scope="module")
def undisturbed(served: Source, config: PrecomputeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing stopped."""
    served.released.set()
    return precompute(replace(config, out=tmp_path_factory.mktemp("whole") / "whole.zarr"), [str(served.path)])


def arguments(source: Source, config: PrecomputeConfig, store: Path) -> tuple[object, ...]:
    """The same settings as a command line."""
    options = ("--allow-private-hosts", "--device", "cpu", "--part-rows", PART_ROWS, "--batch-size", 3)
    return ("precompute", source.path, "--teacher", config.teacher, "--out", store, *options, *PATIENT_FLAGS)


def test_killed_and_started_again_it_ends_with_the_same_bytes(
    ddx: Ddx, undisturbed: Path, source: Source, config: PrecomputeConfig, tmp_path: Path
) -> None:
    store = tmp_path / "killed.zarr"
    line = arguments(source, config, store)
    process = ddx(*line)
    wait_until((store / "_ddx" / "commit" / "1").is_file, process)
    process.kill()
    finish(process, -signal.SIGKILL)
    assert not (store / "rows.parquet").exists()
    kept = {path: path.read_bytes() for path in (store / "_ddx" / "commit").iterdir()}
    times = {path: path.stat().st_mtime_ns for path in (store / "latents").glob("c.[01].*")}
    assert len(kept) == len(times) == 2

    source.released.set()
    assert main.run([str(word) for word in line]) == 0
    assert shard_bytes(store) == shard_bytes(undisturbed)
    assert kept == {path: path.read_bytes() for path in kept}
    assert times == {path: path.stat().st_mtime_ns for path in times}, "finished parts are not made again"
    assert not list(store.rglob("*.tmp"))


def test_interrupted_it_says_so_and_goes_on(
    ddx: Ddx, undisturbed: Path, source: Source, config: PrecomputeConfig, tmp_path: Path
) -> None:
    store = tmp_path / "interrupted.zarr"
    process = ddx(*arguments(source, config, store))
    wait_until((store / "_ddx" / "commit" / "1").is_file, process)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, 130)
    assert "stopped after 2 of 6 parts" in err
    source.released.set()
    precompute(replace(config, out=store), [str(source.path)])
    assert shard_bytes(store) == shard_bytes(undisturbed)


def test_two_ranks_make_the_bytes_of_one(
    ddx: Ddx, undisturbed: Path, source: Source, config: PrecomputeConfig, tmp_path: Path
) -> None:
    source.released.set()
    line = arguments(source, config, tmp_path / "two.zarr")
    for process in [ddx(*line, environment=rank_of_two(number)) for number in (0, 1)]:
        finish(process)
    assert shard_bytes(tmp_path / "two.zarr") == shard_bytes(undisturbed)


def test_tasks_of_an_array_need_neither_a_first_one_nor_all(
    ddx: Ddx, undisturbed: Path, source: Source, config: PrecomputeConfig, tmp_path: Path
) -> None:
    source.released.set()
    line = arguments(source, config, tmp_path / "array.zarr")
    for task in [ddx(*line, "--rank", str(number), "--world", "3") for number in (2, 1)]:  # the one with 0 never starts
        _, err = finish(task)
        assert "rows" in err  # each tells of its progress: it has a log of its own
    assert shard_bytes(tmp_path / "array.zarr") == shard_bytes(undisturbed)


@pytest.mark.parametrize(
    ("given", "message", "cure"),
    [
        ({"rank": 0}, "rank = 0 says nothing without world", "--world $SLURM_ARRAY_TASK_COUNT"),
        ({"world": 4}, "world = 4 says nothing without rank", "--rank $SLURM_ARRAY_TASK_ID"),
        ({"rank": 4, "world": 4}, "rank = 4 is not among the 4 of world", "--array=0-3"),
    ],
)
def test_a_rank_that_is_none_of_the_world_is_refused(given: dict[str, int], message: str, cure: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        PrecomputeConfig(**given)
    assert cure in str(caught.value.hint)


@pytest.mark.parametrize(("key", "value"), [("batch_size", 2), ("max_upscale", 2.0), ("dtype", "bf16")])
def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    undisturbed: Path, source: Source, config: PrecomputeConfig, key: str, value: object
) -> None:
    before = shard_bytes(undisturbed)
    with pytest.raises(UsageError, match=f"was made with {key} = ") as caught:
        precompute(replace(config, out=undisturbed, **{key: value}), [str(source.path)])
    assert "--out" in str(caught.value.hint)
    assert shard_bytes(undisturbed) == before


def test_a_complete_store_is_left_as_it_is(undisturbed: Path, source: Source, config: PrecomputeConfig) -> None:
    times = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.*") if path.is_file()}
    precompute(replace(config, out=undisturbed), [str(source.path)])
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_full_disk_is_one_line_and_the_store_goes_on_later(
    ddx: Ddx, undisturbed: Path, source: Source, config: PrecomputeConfig, tmp_path: Path
) -> None:
    source.released.set()

    store = tmp_path / "x.zarr"
    process = ddx(*arguments(source, config, store), largest_file=6000)  # room for metadata, not for a shard of tokens
    _, err = finish(process, code=1)
    *_, error, hint = err.strip().splitlines()
    assert error.startswith("error: cannot write")
    assert hint.startswith("hint: ")
    assert "Traceback" not in err
    assert not (store / "_ddx" / "commit" / "0").exists()
    precompute(replace(config, out=store), [str(source.path)])
    assert shard_bytes(store) == shard_bytes(undisturbed)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.chmod(0o555)
    yield
    folder.chmod(0o755)


@contextlib.contextmanager
def replaced_by_a_file(folder: Path) -> Iterator[None]:
    away = folder.rename(folder.with_name("away"))
    folder.touch()
    yield
    folder.unlink()
    away.rename(folder)


as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")


@pytest.mark.parametrize(
    ("refusing", "folder"),
    [
        (replaced_by_a_file, "latents"),
        pytest.param(read_only, "latents", marks=as_user),
        pytest.param(read_only, ".", marks=as_user),
    ],
)
def test_a_folder_that_refuses_in_the_middle_is_one_line_and_the_store_goes_on_later(
    ddx: Ddx,
    undisturbed: Path,
    source: Source,
    config: PrecomputeConfig,
    tmp_path: Path,
    refusing: Callable[[Path], contextlib.AbstractContextManager[None]],
    folder: str,
) -> None:
    store = tmp_path / "x.zarr"
    process = ddx(*arguments(source, config, store))
    wait_until((store / "_ddx" / "commit" / "1").is_file, process)
    times = {path: path.stat().st_mtime_ns for path in (store / "latents").glob("c.[01].*")}
    with refusing(store / folder):
        source.released.set()
        _, err = finish(process, 1)
    *_, error, hint = err.strip().splitlines()
    assert error.startswith(f"error: cannot write {store / folder}")
    assert hint.startswith("hint: ")
    assert "Traceback" not in err
    precompute(replace(config, out=store), [str(source.path)])
    assert shard_bytes(store) == shard_bytes(undisturbed)
    assert times == {path: path.stat().st_mtime_ns for path in times}, "finished parts are not made again"
