"""More rows in a store that is there: its old parts stay as they are, and the new ones are those of a store alone."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.data.verify import verify_all
from ddx.errors import DdxError, UsageError
from ddx.progress import NullProgress
from picture_server import PictureServer, serve_pictures, write_urls
from pipelines import make_sana
from stores import finish, rank_of_two, shard_bytes
from watchdog import PATIENT_FLAGS, wait_until

Ddx = Callable[..., Any]
PART_ROWS, OLD_ROWS, NEW_ROWS = 4, 10, 6
FIRST_NEW_ROW, FIRST_NEW_PART = 12, 3


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with serve_pictures() as state:
        yield state


@pytest.fixture(autouse=True)
def answering(server: PictureServer) -> Iterator[None]:
    """Whatever a test makes of the server, the next one finds it answering."""
    yield
    server.status, server.held_from = {}, None
    server.released.set()


@pytest.fixture(scope="module")
def sources(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("urls")
    urls = [server.url(row) for row in range(OLD_ROWS + NEW_ROWS)]
    old, new = write_urls(folder / "old.parquet", urls[:OLD_ROWS]), write_urls(folder / "new.parquet", urls[OLD_ROWS:])
    return old, new


@pytest.fixture(scope="module")
def plain(sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing was added to."""
    return precompute(replace(config, out=tmp_path_factory.mktemp("plain") / "old.zarr"), [str(sources[0])])


@pytest.fixture
def store(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "copy.zarr")


@pytest.fixture(scope="module")
def appended(
    plain: Path, sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store that was added to in one go."""
    store = shutil.copytree(plain, tmp_path_factory.mktemp("appended") / "both.zarr")
    return append(config, store, sources[1])


def append(config: PrecomputeConfig, store: Path, source: Path, **settings: Any) -> Path:
    return precompute(replace(config, out=store, append=True, **settings), [str(source)])


def command_line(config: PrecomputeConfig, store: Path, source: Path, *more: str) -> tuple[object, ...]:
    options = ("--allow-private-hosts", "--device", "cpu", "--part-rows", PART_ROWS, "--batch-size", 3, "--retries", 0)
    return ("precompute", source, "--teacher", config.teacher, "--out", store, *options, *PATIENT_FLAGS, *more)


def whole_bytes(store: Path) -> dict[str, bytes]:
    """The store's files, and those of its parts' rows and records."""
    folders = ("commit", "rows", "errors")
    inner = {name: shard_bytes(store / "_ddx" / name) for name in folders}
    return shard_bytes(store) | {f"{folder}/{name}": data for folder in folders for name, data in inner[folder].items()}


def times(store: Path) -> dict[str, int]:
    return {
        str(path.relative_to(store)): path.stat().st_mtime_ns
        for path in store.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_new_rows_begin_behind_the_last_part_and_are_those_of_a_store_of_their_own(
    plain: Path, appended: Path, sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    old, new = Store(plain), Store(precompute(replace(config, out=tmp_path / "new.zarr"), [str(sources[1])]))
    both = Store(appended)
    rows = [*range(OLD_ROWS), *range(FIRST_NEW_ROW, FIRST_NEW_ROW + NEW_ROWS)]
    assert both.rows_table()["row"].to_pylist() == rows
    for name in ("caption", "hash", "status"):
        assert both.rows_table()[name] == pa.chunked_array(
            old.rows_table()[name].chunks + new.rows_table()[name].chunks
        )
    latents = both.array("latents")
    assert latents.shape[0] == FIRST_NEW_ROW + NEW_ROWS
    assert np.array_equal(latents[:OLD_ROWS], old.array("latents"))
    assert not latents[OLD_ROWS:FIRST_NEW_ROW].any()
    assert np.array_equal(latents[FIRST_NEW_ROW:], new.array("latents"))
    offset, length, tokens = (both.array(f"text/{name}") for name in ("offset", "length", "tokens"))
    assert (offset[OLD_ROWS:FIRST_NEW_ROW] == -1).all() and not length[OLD_ROWS:FIRST_NEW_ROW].any()
    own_offset, own_length, own_tokens = (new.array(f"text/{name}") for name in ("offset", "length", "tokens"))
    assert np.array_equal(length[FIRST_NEW_ROW:], own_length)
    for row in range(NEW_ROWS):
        start, own = offset[FIRST_NEW_ROW + row], own_offset[row]
        assert np.array_equal(tokens[start : start + own_length[row]], own_tokens[own : own + own_length[row]])
    loader = Loader(appended, 4, seed=1)
    seen = sorted(row for batch in islice(loader, OLD_ROWS + NEW_ROWS) for row in batch.rows.tolist())
    loader.close()
    assert seen == sorted(rows * 4)
    group = zarr.open_group(str(appended), mode="r")
    assert group["latents"].shape == zarr.open_array(str(appended), path="latents", mode="r").shape == latents.shape


def test_old_files_are_not_written_again(
    store: Path, sources: tuple[Path, Path], config: PrecomputeConfig, appended: Path
) -> None:
    before = times(store)
    append(config, store, sources[1])
    changed = {name for name, time in times(store).items() if before.get(name, time) != time}
    assert {name for name in changed if not name.endswith("zarr.json")} == {"rows.parquet", "run.json"}
    assert whole_bytes(store) == whole_bytes(appended)


def test_what_inspect_and_the_loader_say(appended: Path, sources: tuple[Path, Path]) -> None:
    store = Store(appended)
    summary = store.summary()
    assert (summary["rows"], summary["ok"], summary["complete"]) == (OLD_ROWS + NEW_ROWS, OLD_ROWS + NEW_ROWS, True)
    assert summary["parts"] == {"done": 5, "total": 5}
    assert summary["sources"] == [str(source) for source in sources]
    assert [(part["first_row"], part["rows"]) for part in summary["segments"]] == [(0, 10), (FIRST_NEW_ROW, 6)]
    assert verify_all(appended, store.num_parts, NullProgress()).damaged == []
    assert store.token_counts().sum() == OLD_ROWS + NEW_ROWS
    assert json.loads((appended / "run.json").read_text())["rows"] == OLD_ROWS + NEW_ROWS


def test_inspect_prints_the_sources_of_all_rows(
    appended: Path, sources: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["inspect", str(appended)]) == 0
    out = capsys.readouterr().out
    assert f"rows 0 to 9:\n  sources: {sources[0]}\n" in out
    assert f"rows 12 to 17:\n  sources: {sources[1]}\n" in out


@pytest.mark.parametrize(("number", "again"), [(0, False), (0, True), (1, False), (1, True)])
def test_the_commands_that_made_it_find_it_complete(
    appended: Path, sources: tuple[Path, Path], config: PrecomputeConfig, number: int, again: bool
) -> None:
    before = times(appended)
    precompute(replace(config, out=appended, append=again), [str(sources[number])])
    assert times(appended) == before


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("dtype = float32; this run has bfloat16", {"dtype": "bf16"}),
        ("flip = the default; this run has True", {"flip": True}),
        ("part_rows = 4; this run has 3", {"part_rows": 3}),
        ("captions of a row = 1; this run has 2", {"caption_column": ("TEXT", "URL")}),
        ("resolution = ", {"resolution": 32}),
    ],
)
def test_what_must_be_the_same_is_refused_by_name_and_nothing_is_touched(
    plain: Path, sources: tuple[Path, Path], config: PrecomputeConfig, key: str, settings: dict[str, Any]
) -> None:
    before = times(plain)
    with pytest.raises(UsageError, match=f"was made with {key}"):
        append(config, plain, sources[1], **settings)
    assert times(plain) == before


def test_another_teacher_is_refused(
    plain: Path, sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    other = make_sana(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="was made with weights = "):
        append(config, plain, sources[1], teacher=str(other))


def test_settings_of_rows_may_differ_and_all_segments_count(
    store: Path, sources: tuple[Path, Path], config: PrecomputeConfig
) -> None:
    append(config, store, sources[1], limit=3, shuffle=1, batch_size=2)
    append(config, store, sources[0], limit=5, dedup="url")
    segments = Store(store).segments
    assert [(segment.first_part, segment.num_parts, segment.rows) for segment in segments] == [
        (0, 3, 10),
        (3, 1, 3),
        (4, 2, 5),
    ]
    assert segments[1].settings["shuffle"] == 1 and segments[2].settings["dedup"] == "url"
    assert Store(store).summary()["ok"] == 18


def test_a_few_rows_have_a_part_of_the_usual_size(
    sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    """Else a small store would fit no other."""
    small = precompute(replace(config, part_rows=1024, out=tmp_path / "small.zarr"), [str(sources[1])])
    append(config, small, sources[0], part_rows=1024, limit=3)
    append(config, small, sources[0], part_rows=1024)
    assert [segment.first_part for segment in Store(small).segments] == [0, 1, 2]
    assert Store(small).attributes["part_rows"] == 1024
    assert Store(small).num_ok == NEW_ROWS + 3 + OLD_ROWS


def test_content_that_was_there_before_is_a_duplicate(
    store: Path, server: PictureServer, sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    again = write_urls(tmp_path / "again.parquet", [server.url(row) for row in (103, 20, 105, 120)])
    before = whole_bytes(store / "latents")
    append(config, store, again, dedup="content")
    table = Store(store).rows_table().slice(OLD_ROWS)
    assert table["status"].to_pylist() == ["duplicate", "ok", "duplicate", "duplicate"]
    assert [text.rpartition(" ")[2] for text in table["detail"].to_pylist()] == ["3", "", "5", "13"]
    assert {name: whole_bytes(store / "latents")[name] for name in before if name[0] == "c"} == {
        name: data for name, data in before.items() if name[0] == "c"
    }
    assert verify_all(store, 4, NullProgress()).damaged == []


def test_failed_rows_of_either_segment_are_taken_up_again(
    server: PictureServer, sources: tuple[Path, Path], config: PrecomputeConfig, appended: Path, tmp_path: Path
) -> None:
    store = tmp_path / "failed.zarr"
    server.status = {2: 500, 11: 500, 15: 404}
    precompute(replace(config, out=store), [str(sources[0])])
    append(config, store, sources[1])
    assert Store(store).summary()["failed"] == {"http_404": 1, "http_500": 2}
    server.status = {}
    server.asked.clear()
    append(config, store, sources[1], retry=("all",))
    assert sorted(server.asked) == [11, 15]
    precompute(replace(config, out=store, retry=("all",)), [str(sources[0])])
    assert sorted(server.asked) == [2, 11, 15]
    assert whole_bytes(store) == whole_bytes(appended)


def test_killed_it_goes_on_and_keeps_others_out_until_it_is_complete(
    ddx: Ddx,
    server: PictureServer,
    store: Path,
    sources: tuple[Path, Path],
    config: PrecomputeConfig,
    appended: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.released.clear()
    server.held_from = OLD_ROWS + PART_ROWS
    line = command_line(config, store, sources[1], "--append")
    process = ddx(*line)
    wait_until((store / "_ddx" / "commit" / str(FIRST_NEW_PART)).is_file, process)
    words = [str(word) for word in line]
    assert main.run(words) == 1
    assert "another process is writing" in capsys.readouterr().err
    process.kill()
    finish(process, -signal.SIGKILL)
    assert not Store(store).is_complete
    with pytest.raises(DdxError, match=r"has not all parts of .*new.parquet"):
        append(config, store, sources[0], limit=2)
    precompute(replace(config, out=store), [str(sources[0])])
    assert not Store(store).is_complete, "the first rows are there, and others are still waited for"
    server.released.set()
    server.held_from = None
    kept = times(store / "latents")
    assert main.run(words) == 0
    assert {name: times(store / "latents")[name] for name in kept} == kept
    assert whole_bytes(store) == whole_bytes(appended)


def test_stopped_between_the_metadata_of_arrays_and_the_roots_it_has_its_old_rows(
    store: Path, plain: Path, sources: tuple[Path, Path], config: PrecomputeConfig, appended: Path
) -> None:
    in_the_way = store / ".zarr.json.tmp"
    in_the_way.mkdir()
    with pytest.raises(DdxError, match="cannot write"):
        append(config, store, sources[1])
    in_the_way.rmdir()
    assert (store / "latents" / "zarr.json").read_bytes() != (plain / "latents" / "zarr.json").read_bytes()
    assert not Store(store).is_complete
    assert Store(store).token_counts().tolist() == Store(plain).token_counts().tolist()
    precompute(replace(config, out=store), [str(sources[0])])
    loader = Loader(store, 2, seed=0)
    assert loader.num_rows == OLD_ROWS
    loader.close()
    append(config, store, sources[1])
    assert whole_bytes(store) == whole_bytes(appended)


def test_a_store_that_is_read_does_not_grow(store: Path, sources: tuple[Path, Path], config: PrecomputeConfig) -> None:
    before, loader = whole_bytes(store), Loader(store, 2, seed=0)
    with pytest.raises(DdxError, match="is being read, and adding rows"):
        append(config, store, sources[1])
    loader.close()
    assert whole_bytes(store) == before


def test_two_ranks_make_the_bytes_of_one(
    ddx: Ddx, store: Path, sources: tuple[Path, Path], config: PrecomputeConfig, appended: Path
) -> None:
    line = command_line(config, store, sources[1], "--append")
    for process in [ddx(*line, environment=rank_of_two(number)) for number in (0, 1)]:
        finish(process)
    assert whole_bytes(store) == whole_bytes(appended)


def test_a_damaged_part_of_either_segment_is_made_anew(
    appended: Path, sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    store = shutil.copytree(appended, tmp_path / "damaged.zarr")
    (store / "latents" / "c.1.0.0.0").unlink()
    (store / "text" / "tokens" / "c.4.0").unlink()
    precompute(replace(config, out=store, verify=True), [str(sources[0])])
    assert [damage.part for damage in verify_all(store, 5, NullProgress()).damaged] == [4]
    precompute(replace(config, out=store, verify=True), [str(sources[1])])
    assert whole_bytes(store) == whole_bytes(appended)


def test_drawn_latents_are_those_of_their_own_row_numbers_when_they_are_taken_up_again(
    server: PictureServer, sources: tuple[Path, Path], config: PrecomputeConfig, tmp_path: Path
) -> None:
    from pipelines import make_stable_diffusion

    drawn = replace(config, teacher=str(make_stable_diffusion(tmp_path / "sd")), posterior="sample")
    stores = [precompute(replace(drawn, out=tmp_path / name), [str(sources[0])]) for name in ("a.zarr", "b.zarr")]
    append(drawn, stores[0], sources[1])
    server.status = {12: 500}
    append(drawn, stores[1], sources[1])
    server.status = {}
    append(drawn, stores[1], sources[1], retry=("all",))
    assert whole_bytes(stores[0]) == whole_bytes(stores[1])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--append",), "--append adds to a store, and none is given"),
        (("--append", "--out", "nowhere.zarr"), "there is no store at nowhere.zarr to append to"),
        (("--append", "--out", "x.zarr", "--stage", "fetch"), "--append fetches and encodes"),
    ],
)
def test_words_that_make_no_sense(
    sources: tuple[Path, Path],
    config: PrecomputeConfig,
    words: tuple[str, ...],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["precompute", str(sources[1]), "--teacher", config.teacher, *words]) == 2
    assert f"error: {error}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_what_would_be_added_and_refuses_what_would_be_refused(
    plain: Path, sources: tuple[Path, Path], config: PrecomputeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(plain)
    words = [str(word) for word in command_line(config, plain, sources[1], "--dry-run")]
    assert main.run(words) == 2
    assert "hint: add its rows with --append" in capsys.readouterr().err
    nowhere = [str(word) for word in command_line(config, plain / "nowhere", sources[1], "--dry-run", "--append")]
    assert main.run(nowhere) == 2
    assert main.run([*words, "--append"]) == 0
    assert "2 parts" in capsys.readouterr().out
    assert times(plain) == before
    assert pq.read_metadata(plain / "rows.parquet").num_rows == OLD_ROWS
