"""Every kind of input, with the same pictures and captions, ends in the same latents and embeddings."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.data.rows import piece_path, read_rows
from ddx.data.store import Store
from ddx.errors import DdxError, UsageError
from source_files import (
    CAPTIONS,
    NUM,
    csv_of_paths,
    ffrecord,
    ffrecord_of_dicts,
    ffrecord_of_folder,
    image_folder,
    jsonl_beside_images,
    png,
    tars,
    write_images,
)
from stores import shard_bytes


@pytest.fixture(scope="module")
def make(teacher_folder: Path) -> Callable[..., Store]:
    def make(sources: Sequence[Path], out: Path, **settings: object) -> Store:
        config = PrecomputeConfig(
            teacher=str(teacher_folder), device="cpu", batch_size=2, part_rows=4, out=out, max_upscale=2.0, **settings
        )
        return Store(precompute(config, [str(source) for source in sources]))

    return make


@pytest.fixture(scope="module")
def reference(make: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("reference")
    return make([image_folder(folder)], folder / "store.zarr")


@pytest.mark.parametrize("write", [csv_of_paths, jsonl_beside_images, tars, ffrecord_of_dicts, ffrecord_of_folder])
def test_every_kind_of_input_gives_the_same_arrays(
    write: Callable[[Path], Path], make: Callable[..., Store], reference: Store, tmp_path: Path
) -> None:
    store = make([write(tmp_path)], tmp_path / "store.zarr")
    assert store.rows_table()["caption"].to_pylist() == CAPTIONS
    assert store.num_ok == NUM
    for name in ("latents", "text/tokens", "text/offset", "text/length"):
        np.testing.assert_array_equal(store.array(name), reference.array(name), name)


def test_rows_are_chosen_by_their_metadata(make: Callable[..., Store], reference: Store, tmp_path: Path) -> None:
    names = write_images(tmp_path / "p")
    lines = ["path\ttext\twidth"]
    for number in (0, 1, 1, 2, 3, 4, 5):
        lines.append(f"p/{names[number]}\t{CAPTIONS[number].replace(chr(9), ' ')}\t{number * 100}")
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    store = make(
        [tmp_path / "list.tsv"], tmp_path / "s.zarr", where="width >= 100 and width != 300", dedup="url", limit=3
    )
    assert store.rows_table()["key"].to_pylist() == ["000000001", "000000003", "000000005"]
    np.testing.assert_array_equal(store.array("latents")[:3], reference.array("latents")[[1, 2, 4]])
    with pytest.raises(UsageError, match="limit"):  # another selection is another store
        make([tmp_path / "list.tsv"], tmp_path / "s.zarr", where="width >= 100 and width != 300", dedup="url")


def test_the_same_image_is_kept_once(make: Callable[..., Store], tmp_path: Path) -> None:
    names = write_images(tmp_path / "p")
    for copy, number in enumerate((1, 4, 1)):
        (tmp_path / "p" / f"copy{copy}.png").write_bytes(png(number))
    order = [names[0], "copy0.png", names[1], names[2], names[3], names[4], "copy1.png", names[5], "copy2.png"]
    lines = ["file_name,caption", *(f"p/{name},a picture" for name in order)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    table = make([tmp_path / "list.csv"], tmp_path / "once.zarr", dedup="content").rows_table()
    dropped = [row for row, status in enumerate(table["status"].to_pylist()) if status == "duplicate"]
    assert dropped == [2, 6, 8]
    assert [table["detail"][row].as_py() for row in dropped] == [f"the same image as row {row}" for row in (1, 5, 1)]
    store = Store(tmp_path / "once.zarr")
    plain = make([tmp_path / "list.csv"], tmp_path / "plain.zarr")
    kept = [row for row in range(len(order)) if row not in dropped]
    assert store.num_ok == 6 and plain.num_ok == 9
    for name in ("latents", "text/length"):
        np.testing.assert_array_equal(store.array(name)[kept], plain.array(name)[kept])
        assert not store.array(name)[dropped].any()
    before = shard_bytes(store.path)
    make([tmp_path / "list.csv"], tmp_path / "once.zarr", dedup="content")
    assert shard_bytes(store.path) == before


def test_a_tar_that_is_cut_short_keeps_what_it_has(make: Callable[..., Store], tmp_path: Path) -> None:
    tars(tmp_path)
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[: len(whole) // 2])
    table = make([tmp_path], tmp_path / "store.zarr").rows_table()
    status = table["status"].to_pylist()
    assert status[-2:] == ["ok", "ok"]  # those of the second tar
    assert "unreadable_source" in status and status.count("ok") >= 3
    assert "cut short" in table["detail"].to_pylist()[status.index("unreadable_source")]


def test_tiff_is_decoded_where_it_is_asked_for(make: Callable[..., Store], reference: Store, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number, caption in enumerate(CAPTIONS):
        path = tmp_path / "p" / f"{number:03d}.tif"
        Image.open(io.BytesIO(png(number))).save(
            path, compression=("raw", "tiff_lzw", "tiff_adobe_deflate")[number % 3]
        )
        path.with_suffix(".txt").write_text(caption)
    with pytest.raises(DdxError, match=f"{NUM} unsupported_format"):
        make([tmp_path / "p"], tmp_path / "without.zarr")
    assert all("--tiff" in detail for detail in read_rows(tmp_path / "without.zarr" / piece_path(0)).detail)
    store = make([tmp_path / "p"], tmp_path / "with.zarr", tiff=True)
    np.testing.assert_array_equal(store.array("latents"), reference.array("latents"))


def test_a_damaged_sample_costs_its_row(make: Callable[..., Store], tmp_path: Path) -> None:
    path = ffrecord_of_dicts(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    table = make([path], tmp_path / "store.zarr").rows_table()
    status = table["status"].to_pylist()
    assert status.count("ok") == NUM - 1
    assert "checksum does not match" in table["detail"].to_pylist()[status.index("unreadable_source")]


@pytest.mark.parametrize(
    ("arguments", "said", "cure"),
    [
        (["list.tsv", "--where", "width >"], "cannot read the filter", "--where"),
        (["list.tsv", "--where", "height > 5"], 'no column "height" among: path, text, width', "one of the columns"),
        (["list.tsv", "--where", "width > 5000"], "none of 1 rows passes", "widen"),
        (["list.tsv", "--shuffle", "1"], "shuffle = 1", "--limit"),
        (["list.tsv", "--limit", "0"], "limit = 0", "--limit 1"),
        (["list.tsv", "--dedup", "sha"], "sha", "url"),
        (["notes.doc"], "not a kind of file", "*.parquet"),
        (["empty"], "no image in", "*.parquet"),
        (["train.ffr"], "builtins.print, and pickles are only read, not run", "pack_folder"),
        (["broken.tar"], "not a readable tar", "download"),
        (["broken.jsonl"], "not JSON", ".jsonl"),
        (["{00000..00003}.tar"], "no such file: 00000.tar", "check the path"),
    ],
)
def test_wrong_input_is_one_line_and_its_cure(
    arguments: list[str],
    said: str,
    cure: str,
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.tsv").write_text("path\ttext\twidth\na.png\ta dog\t640\n")
    Path("notes.doc").write_text("x")
    ffrecord(Path(), [b"\x80\x04cbuiltins\nprint\nC\x02hi\x85R."])
    Path("empty").mkdir()
    Path("broken.tar").write_text("hello " * 300)
    Path("broken.jsonl").write_text("hello\n")
    assert main.run(["precompute", *arguments, "--teacher", str(teacher_folder), "--device", "cpu"]) == 2
    printed = capsys.readouterr().err
    assert said in printed and cure in printed.partition("hint:")[2], printed
