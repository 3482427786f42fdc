"""Files of several ranks: each element is written once, and read by ranks that share the tensors in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddx.checkpoints.files import SMALL, own_pieces
from ddx.checkpoints.folder import Saved, load_checkpoint, or_damaged
from ddx.checkpoints.shares import Spread, copy_all_into, part_of, whole
from ddx.errors import DdxError
from saved_by_ranks import rows, save_by_ranks

STATE = {"step": 4}


def tensors() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    weights = {"a": torch.randn(7, 3), "one": torch.randn(1, 4), "b": torch.randn(5, dtype=torch.bfloat16)}
    steps = {"a|step": torch.tensor(4.0), "a|count": torch.tensor(2**40 + 1), "empty": torch.zeros(0, 3)}
    return {"student": weights, "student.optimizer": steps}


def save(folder: Path, world: int, *, spread: bool) -> Path:
    return save_by_ranks(folder, 4, tensors(), STATE, world, ("student",) if spread else ())


def assert_whole(saved: Saved) -> None:
    assert saved.state == STATE
    for group, named in tensors().items():
        assert saved.tensors[group].keys() == named.keys()
        for name, value in named.items():
            found = whole(saved.tensors[group][name])
            assert found.dtype == value.dtype and torch.equal(found, value), name


@pytest.mark.parametrize(("world", "spread"), [(2, False), (2, True), (4, True), (9, True)])
def test_what_ranks_wrote_any_number_of_them_reads(world: int, spread: bool, tmp_path: Path) -> None:
    saved = load_checkpoint(save(tmp_path, world, spread=spread))
    assert_whole(saved)
    for readers in (1, 2, 3, 4, 5):
        for rank in range(readers):
            for name, value in tensors()["student"].items():
                mine = rows(value, rank, readers)
                assert torch.equal(part_of(saved.tensors["student"][name], mine.offset, mine.local.shape), mine.local)


def test_a_part_in_the_midst_of_several_dimensions_is_found(tmp_path: Path) -> None:
    a = load_checkpoint(save(tmp_path, 4, spread=True)).tensors["student"]["a"]
    assert torch.equal(part_of(a, [1, 1], [4, 2]), tensors()["student"]["a"][1:5, 1:3])


def test_ranks_write_equal_numbers_of_bytes_and_the_first_one_what_is_small() -> None:
    large = {f"w{k}": torch.zeros(SMALL // 4 + k) for k in range(6)}
    pieces = [own_pieces({"g": {**large, "step": torch.zeros(())}}, rank, 3)["g"] for rank in range(3)]
    assert [len(named) for named in pieces] == [3, 2, 2] and "step" in pieces[0]
    assert set(large) == {name for named in pieces for name in named} - {"step"}


def test_a_share_like_the_writer_s_is_read_from_its_file_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 4, spread=True)
    saved = load_checkpoint(path)
    for rank in (1, 2, 3):
        (path / f"student.{rank}-of-4.safetensors").unlink()
    mine = rows(tensors()["student"]["a"], 0, 4)
    assert torch.equal(part_of(saved.tensors["student"]["a"], mine.offset, mine.local.shape), mine.local)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def garble(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("student.2-of-4.safetensors", damage) for damage in (cut, garble, Path.unlink)),
        *((name, damage) for name in ("index.json", "state.json") for damage in (cut, garble)),
    ],
)
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = save(tmp_path, 4, spread=True)
    damage(path / name)
    live = {name: torch.zeros_like(value) for name, value in tensors()["student"].items()}
    with pytest.raises(DdxError, match="damaged") as error, or_damaged(path):
        copy_all_into(live, load_checkpoint(path).tensors["student"])
    assert name in error.value.message and error.value.hint == f"delete {path} to resume from the one before it"


def test_a_tensor_of_which_a_part_is_nowhere_is_not_filled_with_something(tmp_path: Path) -> None:
    path = save(tmp_path, 4, spread=True)
    index = json.loads((path / "index.json").read_text())
    del index["files"]["student.2-of-4.safetensors"]
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DdxError, match="of a are in no file"), or_damaged(path):
        whole(load_checkpoint(path).tensors["student"]["a"])


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved: Tensor | Spread = load_checkpoint(save(tmp_path, 2, spread=True)).tensors["student"]["a"]
    with pytest.raises(RuntimeError, match=r"a: a tensor of shape \[7, 3\] does not fit one of \[7, 1\]"):
        copy_all_into({"a": torch.zeros(7, 1)}, {"a": saved})
