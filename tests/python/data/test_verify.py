"""What is not as it was written is named, and made anew with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.data.verify import Damage, verify_all
from ddx.errors import DdxError
from ddx.progress import NullProgress
from pipelines import make_stable_diffusion

PART_ROWS = 4
# A store has no other arrays but pooled embeddings; all lie in several parts or, of the text, in one shard.
KINDS = (
    *("latents", "latents_flip", "logvar", "logvar_flip", "text/tokens", "text/offset", "text/length"),
    *("text/null", "text/validation/tokens", "text/validation/offset", "text/validation/length"),
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PrecomputeConfig:
    teacher = make_stable_diffusion(tmp_path_factory.mktemp("teacher") / "sd")
    return PrecomputeConfig(
        teacher=str(teacher), part_rows=PART_ROWS, batch_size=3, device="cpu", flip=True, posterior="params"
    )


@pytest.fixture(scope="module")
def whole(config: PrecomputeConfig, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precompute(replace(config, out=tmp_path_factory.mktemp("store") / "whole.zarr"), [str(pairs)])


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy.zarr")


def files(store: Path) -> dict[str, Path]:
    """Every file that is verified; locks, the record of the run and the root's metadata are not."""
    named = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {
        name: path for name, path in named.items() if path.suffix != ".lock" and name not in ("run.json", "zarr.json")
    }


def is_no_damage(name: str, path: Path, harm: Callable[[Path], None]) -> bool:
    """A record that says something else, JSON with a blank at its end, an empty file, a store that is not complete."""
    is_json = name.startswith("_ddx/commit/") or name.endswith("zarr.json")
    return (
        (is_json and harm is lengthen)
        or (name.startswith("_ddx/commit/") and harm is flip)
        or (not path.stat().st_size and harm in (flip, cut))
        or (name == "rows.parquet" and harm is Path.unlink)
    )


def damaged(store: Path) -> list[Damage]:
    return verify_all(store, Store(store).num_parts, NullProgress()).damaged


def test_the_store_has_every_kind_of_array(whole: Path) -> None:
    arrays = {str(path.parent.relative_to(whole)) for path in whole.rglob("c.*")}
    assert arrays == set(KINDS)
    found = verify_all(whole, Store(whole).num_parts, NullProgress())
    not_counted = ("_ddx/commit", "zarr.json")
    sizes = [
        path.stat().st_size for name, path in files(whole).items() if not any(word in name for word in not_counted)
    ]
    assert (found.damaged, found.num_bytes) == ([], sum(sizes))


@pytest.mark.parametrize("harm", [flip, cut, lengthen, Path.unlink])
def test_every_file_is_named_whatever_happens_to_it(store: Path, harm: Callable[[Path], None]) -> None:
    for name, path in files(store).items():
        if is_no_damage(name, path, harm):
            continue
        content = path.read_bytes()
        harm(path)
        (found,) = damaged(store)
        assert found.file == name, found
        stem = name.rpartition("/")[2].removeprefix("c.").split(".")[0]
        in_parts = name.startswith("_ddx/") or (stem.isdigit() and "null" not in name and "validation" not in name)
        assert found.part == (int(stem) if in_parts else None)
        path.write_bytes(content)
    assert damaged(store) == []


def test_damaged_files_of_every_kind_are_made_anew_with_equal_bytes(
    config: PrecomputeConfig, pairs: Path, whole: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harms = [flip, cut, Path.unlink]
    shards = [next((store / kind).glob(f"c.{index % 3 if index < 7 else 0}*")) for index, kind in enumerate(KINDS)]
    others = [store / "text" / "offset" / "zarr.json", store / "_ddx" / "rows" / "1.parquet"]
    for index, path in enumerate([*shards, *others]):
        harms[index % 3](path)
    names = {str(path.relative_to(store)) for path in (*shards, *others)}
    assert main.run(["inspect", str(store), "--verify", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)["verified"]["damaged"]
    assert {damage["file"] for damage in found} == names
    assert {damage["part"] for damage in found} == {0, 1, 2, None}
    error, hint = captured.err.splitlines()[-2:]
    assert error == f"error: {store} is damaged, files: {len(names)}"
    assert hint.startswith("hint: ") and "ddx precompute" in hint and "--verify" in hint
    last = (store / "latents" / "c.3.0.0.0").stat().st_mtime_ns
    precompute(replace(config, out=store, verify=True), [str(pairs)])
    assert {name: path.read_bytes() for name, path in files(store).items()} == {
        name: path.read_bytes() for name, path in files(whole).items()
    }
    assert (store / "latents" / "c.3.0.0.0").stat().st_mtime_ns == last, "a part that is whole is left alone"
    assert main.run(["inspect", str(store), "--verify"]) == 0
    assert "nothing is damaged" in capsys.readouterr().out


def test_names_and_reasons_are_printed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(store / "text" / "length" / "c.2")
    (store / "latents" / "c.1.0.0.0").unlink()
    assert main.run(["inspect", str(store), "--verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "latents/c.1.0.0.0  is missing" in lines
    assert any(line.startswith("text/length/c.2 ") and line.endswith("fails its checksum") for line in lines)


def test_a_whole_store_is_not_touched(config: PrecomputeConfig, pairs: Path, whole: Path) -> None:
    times = {name: path.stat().st_mtime_ns for name, path in files(whole).items()}
    precompute(replace(config, out=whole, verify=True), [str(pairs)])
    assert times == {name: path.stat().st_mtime_ns for name, path in files(whole).items()}


def test_a_shard_of_other_rows_is_found_though_its_checksums_fit(store: Path) -> None:
    """As when a backup of another moment was put back: part 1 has a row less than part 0."""
    record = json.loads((store / "_ddx" / "commit" / "1").read_text())
    shutil.copy(store / "logvar" / "c.0.0.0.0", store / "logvar" / "c.1.0.0.0")
    record["files"]["logvar/c.1.0.0.0"] = (store / "logvar" / "c.1.0.0.0").stat().st_size
    (store / "_ddx" / "commit" / "1").write_text(json.dumps(record))
    (found,) = damaged(store)
    assert found.file == "logvar/c.1.0.0.0"
    assert found.reason in ("row 5 is in it, and should not be", "row 7 is fine, and is not in it")


def test_rows_that_differ_from_their_piece_are_found_in_stores_without_checksums_too(store: Path) -> None:
    piece = store / "_ddx" / "rows" / "2.parquet"
    table = pq.read_table(piece)
    captions = ["another caption", *table["caption"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("caption"), "caption", [captions]), piece)
    commit = store / "_ddx" / "commit" / "2"
    record = json.loads(commit.read_text())
    record["files"]["_ddx/rows/2.parquet"] = piece.stat().st_size
    commit.write_text(json.dumps(record))
    assert [damage.file for damage in damaged(store)] == ["_ddx/rows/2.parquet"], "by its checksum"
    del record["checksums"]
    commit.write_text(json.dumps(record))
    assert [damage.file for damage in damaged(store)] == ["rows.parquet", "_ddx/rows/2.parquet"]


def test_a_store_that_is_read_is_not_repaired(config: PrecomputeConfig, pairs: Path, store: Path, whole: Path) -> None:
    loader = Loader(store, 2, seed=0)
    flip(store / "latents" / "c.1.0.0.0")
    with pytest.raises(DdxError, match="is being read"):
        precompute(replace(config, out=store, verify=True), [str(pairs)])
    assert (store / "rows.parquet").exists() and (store / "_ddx" / "commit" / "1").exists()
    loader.close()


def test_only_stores_are_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", "sana-tiny", "--verify"]) == 2
    assert capsys.readouterr().err.endswith("hint: leave --verify out\n")
