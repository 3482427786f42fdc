"""What four processes under `torchrun` do for `training/test_saver.py`: save sharded state, read it, and fail to save.

    torchrun --nproc-per-node 4 four_savers.py OUT

OUT/full and OUT/hybrid are the checkpoints, OUT/expected.safetensors what they must hold.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ddx.checkpoints import files
from ddx.checkpoints.folder import Saved, Snapshot, list_checkpoints, load_checkpoint, or_damaged
from ddx.checkpoints.shares import copy_all_into, copy_into, restored
from ddx.cli.leaving import leave
from ddx.errors import DdxError
from ddx.training import saver as saving
from ddx.training.distributed import Ranks
from ddx.training.saver import Saver


class Networks:
    """A network in shards with its optimiser and a bfloat16 average; sizes that four do not divide."""

    def __init__(self, mesh: DeviceMesh, seed: int) -> None:
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 6)) for _ in range(2)]
        self.module = nn.Sequential(*blocks, nn.Linear(6, 1))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.module, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2, fused=True)
        self.average = {name: value.detach().bfloat16() for name, value in self.module.named_parameters()}

    def step(self, number: int) -> None:
        rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(number))
        self.module(rows).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, value in self.module.named_parameters():
            self.average[name].lerp_(value.detach().bfloat16(), 0.5)

    def snapshot(self, step: int) -> Snapshot:
        state = self.optimizer.state
        moments = {
            f"{name}|{key}": value
            for name, parameter in self.module.named_parameters()
            for key, value in state[parameter].items()
        }
        counts = {"seen": torch.tensor(2**40 + step)}  # what every rank has, which is equal there
        tensors = {"student": self.module.state_dict(), "student.optimizer": moments, "ema": self.average}
        return Snapshot({**tensors, "method": counts}, {"step": step})

    def restore(self, saved: Saved) -> None:
        copy_all_into(self.module.state_dict(), saved.tensors["student"])
        copy_all_into(self.average, saved.tensors["ema"])
        named = dict(self.module.named_parameters())
        for label, value in saved.tensors["student.optimizer"].items():
            name, _, key = label.rpartition("|")
            self.optimizer.state[named[name]][key] = restored(value, named[name], torch.device("cpu"))


def gathered(snapshot: Snapshot) -> dict[str, Tensor]:
    """Return copies of whole tensors."""
    return {
        f"{group}/{name}": (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for group, named in snapshot.tensors.items()
        for name, value in named.items()
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype and value.equal(found[name]), name


def saved_by(networks: Networks, folder: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Save while the training goes on; return what the checkpoint must hold."""
    expected = gathered(networks.snapshot(2))
    saver = Saver(folder, ranks, keep=2)
    saver.start(2, networks.snapshot(2))
    assert saver.writing is not None  # the steps go on
    networks.step(2)
    saver.settle()
    saver.wait()
    return expected


def fails_to_save(networks: Networks, out: Path, ranks: Ranks) -> None:
    """One rank's disk is full, then no rank may write: the same error on all, nothing is left, and then it works."""
    saver = Saver(out / "failed", ranks, keep=2)
    with raises("cannot write the checkpoint .*step-000003: File too large"):
        if ranks.rank == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        saver.start(3, networks.snapshot(3))
        saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ranks.wait()
    assert list((out / "failed").iterdir()) == []
    saver.start(3, networks.snapshot(3))
    saver.wait()
    assert [path.name for path in list_checkpoints(out / "failed")] == ["step-000003"]
    if ranks.is_first:
        (out / "file").write_text("a file where a folder belongs")
    ranks.wait()
    saver = Saver(out / "file", ranks, keep=2)
    with raises("cannot write the checkpoint .*step-000003: .*(exists|Not a directory)"):
        saver.start(3, networks.snapshot(3))
        saver.wait()


def seen_by_some(networks: Networks, out: Path, ranks: Ranks) -> None:
    """Without a shared file system the first rank writes alone what every rank has; shares it cannot."""
    said: list[str] = []
    saver = Saver(out / ("elsewhere" if ranks.rank == 3 else "alone"), ranks, keep=2, say=said.append)
    with raises("not every machine sees .*, where each is to write its share"):
        saver.start(1, networks.snapshot(1))
    values = {"w": torch.arange(5.0), "step": torch.tensor(3.0)}
    saver.start(1, Snapshot({"student": values}, {"step": 1}))
    saver.wait()
    assert len(said) == 1 and not (out / "elsewhere").exists()
    assert load_checkpoint(out / "alone" / "step-000001").tensors["student"]["w"].shape == (5,)
    assert not (out / "alone" / "step-000001" / "index.json").exists()


def damaged(out: Path, ranks: Ranks) -> None:
    """What one rank cannot read is an error on all."""
    networks, path = Networks(init_device_mesh("cpu", (4,)), seed=5), out / "failed" / "step-000003"
    networks.step(0)
    if ranks.is_first:
        file = path / "ema.2-of-4.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    ranks.wait()

    def work() -> None:
        with or_damaged(path):
            networks.restore(load_checkpoint(path))

    with raises(r"damaged: ema.2-of-4.safetensors: it has \d+ bytes, not \d+"):
        ranks.agreed(work)


@contextmanager
def raises(text: str) -> Iterator[None]:
    try:
        yield
    except DdxError as error:
        assert re.search(text, error.message), error.message
        assert error.hint
    else:
        raise AssertionError(f"no error says {text!r}")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    saving.AT_ONCE, files.SMALL = -1, 100
    four, hybrid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
    two = hybrid["shard"]
    networks = Networks(four, seed=1)
    for step in (0, 1):
        networks.step(step)
    expected = saved_by(networks, out / "full", ranks)
    assert expected["student.optimizer/2.weight|step"].shape == () and expected["ema/2.weight"].dtype == torch.bfloat16
    for number, mesh in enumerate((four, hybrid, two)):
        other = Networks(mesh, seed=2 + number)
        other.step(7)
        other.restore(load_checkpoint(out / "full" / "step-000002"))
        found = gathered(other.snapshot(2))
        assert_equal(found, expected)
        if mesh is not two:
            other.step(2)  # the same step from there
        if mesh is four:
            assert_equal(gathered(other.snapshot(2)), gathered(networks.snapshot(2)))
        if mesh is hybrid:
            other.restore(load_checkpoint(out / "full" / "step-000002"))
            assert_equal(saved_by(other, out / "hybrid", ranks), expected)
    with torch.no_grad():
        whole = torch.zeros(9, 6)
        copy_into(whole, load_checkpoint(out / "full" / "step-000002").tensors["student"]["0.0.weight"])
        assert whole.equal(expected["student/0.0.weight"])
    if ranks.is_first:
        save_file(expected, out / "expected.safetensors")
    fails_to_save(networks, out, ranks)
    damaged(out, ranks)
    seen_by_some(networks, out, ranks)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
