from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddx.checkpoints.folder import Snapshot, latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from ddx.checkpoints.shares import whole
from ddx.errors import DdxError
from ddx.training.tracking import Metrics

SNAPSHOT = Snapshot(
    {"student": {"a": torch.randn(3, 2).T, "b": torch.arange(3)}, "student.optimizer": {"a|step": torch.tensor(4.0)}},
    {"step": 4, "num_steps": {"student": 4}},
)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    found = load_checkpoint(save_checkpoint(tmp_path, 4, SNAPSHOT, keep=2))
    assert found.state == SNAPSHOT.state
    for group, named in SNAPSHOT.tensors.items():
        assert {name: whole(value).tolist() for name, value in found.tensors[group].items()} == {
            name: value.tolist() for name, value in named.items()
        }


def test_the_newest_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save_checkpoint(tmp_path, step, SNAPSHOT, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-1000000", "step-1000001"]


def test_what_a_kill_left_half_written_is_not_a_checkpoint(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, 4, SNAPSHOT, keep=2)
    (tmp_path / ".step-000008.77").mkdir()
    (tmp_path / "step-000009").mkdir()
    assert latest_checkpoint(tmp_path) == whole
    save_checkpoint(tmp_path, 10, SNAPSHOT, keep=2)
    assert not (tmp_path / ".step-000008.77").exists()


def test_a_damaged_checkpoint_is_named_with_the_way_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 4, SNAPSHOT, keep=2)
    file = path / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DdxError, match="damaged") as error:
        load_checkpoint(path)
    assert error.value.hint is not None and "step-000004" in error.value.hint


def test_a_disk_that_takes_nothing_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder belongs")
    with pytest.raises(DdxError, match="cannot write"):
        save_checkpoint(tmp_path / "checkpoints", 4, SNAPSHOT, keep=2)


def test_metrics_forget_what_will_be_done_again(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.write({"step": step, "seconds": 10.0 * step})
    with metrics.path.open("a") as file:
        file.write('{"step": 4, "seco')
    assert metrics.resume(2) == 20.0
    assert metrics.path.read_text() == '{"step": 1, "seconds": 10.0}\n{"step": 2, "seconds": 20.0}\n'
