from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import four_savers
import slow_disk
from ddx.checkpoints.folder import Snapshot, list_checkpoints, load_checkpoint
from ddx.checkpoints.shares import whole
from ddx.errors import DdxError
from ddx.training import saver as saving
from ddx.training.distributed import Ranks
from ddx.training.saver import Saver
from watchdog import WATCHDOG_S


def snapshot(value: Tensor, step: int) -> Snapshot:
    return Snapshot({"student": {"w": value}}, {"step": step})


def test_the_steps_go_on_while_a_checkpoint_is_written_and_the_next_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "AT_ONCE", -1)
    saver, value = Saver(tmp_path, Ranks(), keep=2), torch.zeros(2**22)
    for step in (1, 2, 3):
        saver.start(step, snapshot(value.fill_(step), step))
        assert saver.writing is not None and len(list_checkpoints(tmp_path)) == step - 1
        value.fill_(-1.0)
    saver.wait()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000002", "step-000003"]
    for path in list_checkpoints(tmp_path):
        saved = load_checkpoint(path)
        assert bool((whole(saved.tensors["student"]["w"]) == saved.state["step"]).all())


@pytest.mark.parametrize("why", ["no room", "by the setting", "small"])
def test_the_steps_wait_where_a_copy_has_no_room_or_is_not_wanted(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why != "small":
        monkeypatch.setattr(saving, "AT_ONCE", -1)
    if why == "no room":
        monkeypatch.setattr(saving, "SHARE", 0.0)
    said: list[str] = []
    saver = Saver(tmp_path, Ranks(), keep=2, in_background=why != "by the setting", say=said.append)
    for step in (1, 2):
        saver.start(step, snapshot(torch.zeros(5), step))
        assert saver.writing is None and len(list_checkpoints(tmp_path)) == step
    assert len(said) == (why == "no room")


def test_a_save_that_fails_while_the_steps_go_on_is_told_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "AT_ONCE", -1)
    (tmp_path / "checkpoints").write_text("a file where a folder belongs")
    saver = Saver(tmp_path / "checkpoints", Ranks(), keep=2)
    saver.start(1, snapshot(torch.zeros(5), 1))
    with pytest.raises(DdxError, match=r"cannot write the checkpoint .*step-000001") as error:
        saver.wait()
    assert error.value.hint is not None
    saver.wait()  # nothing is under way any more


def torchrun(world: int, script: str, out: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, script, str(out)], env=environment, capture_output=True, text=True, timeout=WATCHDOG_S
    )
    assert done.returncode == 0, done.stderr[-8000:]


@pytest.mark.cluster
@pytest.mark.slow  # two minutes of waiting
def test_no_collective_waits_for_a_disk(tmp_path: Path) -> None:
    torchrun(2, slow_disk.__file__, tmp_path / "checkpoints")


def test_what_four_ranks_save_while_they_train_is_read_at_any_sharding_and_what_fails_fails_on_all(
    tmp_path: Path,
) -> None:
    torchrun(4, four_savers.__file__, tmp_path)
    expected = load_file(tmp_path / "expected.safetensors")
    for kind in ("full", "hybrid"):
        path = tmp_path / kind / "step-000002"
        saved = load_checkpoint(path)
        found = {
            f"{group}/{name}": whole(value) for group, them in saved.tensors.items() for name, value in them.items()
        }
        assert found.keys() == expected.keys() and saved.state == {"step": 2}
        assert [name for name, value in expected.items() if not value.equal(found[name])] == []
        written = [load_file(file) for file in path.glob("*.safetensors")]
        values = sum(value.numel() for tensors in written for value in tensors.values())
        assert values == sum(value.numel() for value in expected.values())  # each of them once
