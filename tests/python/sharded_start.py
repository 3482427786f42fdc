"""How networks that are spread begin, for `training/test_sharded_start.py`.

    torchrun --nproc-per-node N sharded_start.py OUT JOBS LARGE

JOBS is JSON, a list of {"case", "teacher", "teacher_dtype", "more"}. OUT/<rank>.json has for each of them the tensors
that do not begin as in a run that does not shard, and what the log says; and in bytes, of a run by the teacher LARGE,
the most that a rank has in memory while its networks are opened, what is left of that, and the largest weight.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import two_ranks
from ddx.checkpoints.shares import part_of, share_of
from ddx.cli.leaving import leave
from ddx.memory.ledger import Ledger
from ddx.teachers.registry import load_teacher
from ddx.training.distributed import Ranks
from ddx.training.sharding import Sharding, make_sharding
from ddx.training.trainer import Trainer


def trainer_of(job: dict[str, Any], ranks: Ranks, sharding: Sharding | None, said: list[str]) -> Trainer:
    """Return the trainer of a job, which says what it has to say."""
    teacher = load_teacher(
        job["teacher"], device="cpu", dtype=getattr(torch, job.get("teacher_dtype", "float32")), resolution=64
    )
    return two_ranks.trainer_of(
        two_ranks.Case(**job["case"]), teacher, ranks, sharding, said.append, **job.get("more", {})
    )


def networks(trainer: Trainer) -> dict[str, nn.Module]:
    """Return all networks of a run."""
    return {"teacher": trainer.method.teacher.network(), **trainer._modules()}


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters, buffers and whatever tensors a module has made of its config."""
    made = {
        f"{prefix}.{name}": value
        for prefix, module in network.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    return {**dict(network.named_parameters()), **dict(network.named_buffers()), **made}


def differing(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Return what this rank holds otherwise than it would of whole networks, and what was said of opening them."""
    said: list[str] = []
    shared = networks(trainer_of(job, ranks, make_sharding("full", ranks), said))
    alone = networks(trainer_of(job, Ranks(), None, []))
    assert shared.keys() == alone.keys()
    found = []
    for name, network in alone.items():
        ours, theirs = tensors(shared[name]), tensors(network)
        assert ours.keys() == theirs.keys(), name
        assert any(isinstance(value, DTensor) for value in ours.values()), name
        for own, expected in theirs.items():
            local, offset = share_of(ours[own])
            part = part_of(expected.detach(), offset, local.shape)
            live = ours[own].requires_grad == expected.requires_grad
            if not (local.dtype == part.dtype and torch.equal(local, part) and live):
                found.append(f"{name}: {own}")
    return {"differ": found, "said": said}


class Memory(Ledger):
    """Counts what lies in memory: not what is on the meta device, nor a file that is mapped."""

    def enter(self, value: Tensor, use: Any = None) -> None:
        """Count a storage."""
        if isinstance(value, DTensor):
            value = value._local_tensor
        if not value.is_meta and not _is_mapped(value.untyped_storage()):
            super().enter(value, use)


def _is_mapped(storage: torch.UntypedStorage) -> bool:
    if storage.nbytes() < 2**15:  # too small to matter
        return False
    address = storage.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, last = line.split(maxsplit=5)
        first, end = (int(number, 16) for number in place.split("-"))
        if first <= address < end:
            return last.endswith(".safetensors")
    return False


def memory(teacher: str, ranks: Ranks) -> dict[str, int]:
    """Return the peak of the start, what is left of it, and the size of the largest weight, in bytes."""
    with Memory(block=1) as ledger:
        trainer = trainer_of({"teacher": teacher, "case": {"method": "sid"}}, ranks, make_sharding("full", ranks), [])
    sizes = [
        value.numel() * value.element_size()
        for network in networks(trainer).values()
        for value in tensors(network).values()
    ]
    return {"peak": ledger.peak.num_bytes, "left": ledger.now, "whole": sum(sizes), "largest": max(sizes)}


def main(out: Path, jobs: list[dict[str, Any]], large: str) -> None:
    """Write what is found."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(out / "group").as_uri(), rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    found = {"memory": memory(large, ranks), "jobs": [differing(job, ranks) for job in jobs]}
    dist.barrier()
    dist.destroy_process_group()
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
    leave(0)
