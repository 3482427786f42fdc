"""Inputs as people have them: other encodings, lists, folders with more than pictures, and runs with nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import DdxError, UsageError
from ddx.workspace import Workspace
from source_files import CAPTIONS, NUM, png, write_images

ACCENTED = "a café"
Make = Callable[..., Store]


@pytest.fixture(scope="module")
def make(teacher_folder: Path) -> Make:
    def make(sources: list[Path], out: Path | None, workspace: Path | None = None, **settings: object) -> Store:
        config = PrecomputeConfig(
            teacher=str(teacher_folder), device="cpu", batch_size=2, part_rows=4, out=out, max_upscale=2.0, **settings
        )
        return Store(precompute(config, [str(source) for source in sources], workspace=Workspace(workspace)))

    return make


def statuses(store: Store) -> list[str]:
    return store.rows_table()["status"].to_pylist()


def binary_column(path: Path, captions: list[bytes]) -> Path:
    """Parquet whose captions are bytes of type string, whatever they hold."""
    texts = pa.Array.from_buffers(pa.string(), len(captions), pa.array(captions, pa.binary()).buffers())
    pq.write_table(pa.table({"image": [png(number) for number in range(len(captions))], "caption": texts}), path)
    return path


def test_a_string_that_is_not_utf8_costs_its_row(make: Make, tmp_path: Path) -> None:
    captions = [ACCENTED.encode(), ACCENTED.encode("cp1252"), ACCENTED.encode("utf-16"), b"a dog"]
    path = binary_column(tmp_path / "a.parquet", captions)
    store = make([path], tmp_path / "s.zarr")
    table = store.rows_table()
    assert statuses(store) == ["ok", "caption_encoding", "ok", "ok"]
    assert "0xe9 at 5" in table["detail"][1].as_py()
    assert table["caption"].to_pylist() == [ACCENTED, "", ACCENTED, "a dog"]
    # The encoding decides of failed rows alone, so they can be taken up again with it.
    make([path], tmp_path / "s.zarr", caption_encoding="cp1252", retry=("caption_encoding",))
    assert store.rows_table()["caption"].to_pylist() == [ACCENTED, ACCENTED, ACCENTED, "a dog"]
    with pytest.raises(UsageError, match="klingon"):
        make([path], tmp_path / "s.zarr", caption_encoding="klingon")


def test_captions_and_pictures_may_be_lists(make: Make, tmp_path: Path) -> None:
    pictures = [
        [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}],
        [{"bytes": png(2), "path": None}],
        [],
    ]
    table = pa.table({"images": pictures, "captions": [["a", "b", "c"], ["d", None], ["e"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    store = make([tmp_path / "a.parquet"], tmp_path / "s.zarr")
    assert statuses(store) == ["ok", "ok", "no_image"]
    assert store.rows_table()["captions"].to_pylist() == [["a", "b", "c"], ["d", "", ""], ["e", "", ""]]
    assert (store.array("text/length") > 0).tolist() == [[True] * 3, [True, False, False], [False] * 3]
    first = make([tmp_path / "a.parquet"], tmp_path / "first.zarr", max_captions=1)
    assert first.rows_table()["caption"].to_pylist() == ["a", "d", "e"]
    assert first.array("text/length").shape == (3,)


def test_a_store_within_its_source_is_no_input(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, caption in zip(write_images(tmp_path), CAPTIONS, strict=True):
        (tmp_path / name).with_suffix(".txt").write_text(caption)
    store = make([tmp_path], None, tmp_path / "runs")
    (tmp_path / "runs" / "samples").mkdir()
    (tmp_path / "runs" / "samples" / "0.png").write_bytes(png(0))
    assert make([tmp_path], None, tmp_path / "runs", verify=True).path == store.path
    assert statuses(store) == ["ok"] * NUM
    (tmp_path / "captions.csv").write_text("caption\na cat\n")
    drawn = make([tmp_path], None, tmp_path / "runs", synthetic=True, synthetic_steps=1)
    assert drawn.rows_table()["caption"].to_pylist() == ["a cat"]


def test_a_run_with_nothing_in_it_fails_and_can_be_taken_up(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("file_name,caption\n" + "".join(f"p/{n:03d}.png,a cat\n" for n in range(NUM)))
    for stage in ("fetch", "all"):
        with pytest.raises(DdxError, match=f"no row of .*list.csv could be used: {NUM} missing_file"):
            make([tmp_path / "list.csv"], tmp_path / f"{stage}.zarr", stage=stage)
    store = Store(tmp_path / "all.zarr")
    assert not store.is_complete
    with pytest.raises(DdxError, match="no row that could be used"):
        store.require_complete()
    assert main.run(["inspect", str(tmp_path / "fetch.zarr"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["failed"], found["stage"]) == (0, {"missing_file": NUM}, "fetched, not encoded")
    assert main.run(["inspect", str(tmp_path / "fetch.zarr")]) == 0
    shown = capsys.readouterr().out
    assert "'a cat'" in shown and "--stage encode" in shown and "000000000" in shown
    write_images(tmp_path / "p")
    make([tmp_path / "list.csv"], tmp_path / "all.zarr", retry=("all",))
    assert store.is_complete and store.num_ok == NUM


def test_a_list_that_grew_is_not_added_twice(make: Make, tmp_path: Path) -> None:
    names = write_images(tmp_path / "p")
    lines = ["file_name,caption", *(f"p/{name},a picture" for name in names)]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines[:4]))
    make([path], tmp_path / "s.zarr")
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=f"holds 3 rows of .*this run has {NUM}") as refused:
        make([path], tmp_path / "s.zarr")
    assert refused.value.hint is not None and "--append --dedup content" in refused.value.hint
    store = make([path], tmp_path / "s.zarr", append=True, dedup="content")
    assert statuses(store).count("ok") == NUM
    assert statuses(store)[3:6] == ["duplicate"] * 3
