"""What processes under `torchrun` do for `training/test_sharding.py`: updates of networks that are spread over them.

    torchrun --nproc-per-node N sharded_ranks.py OUT JOBS

JOBS is JSON, a list of {"case", "kind", "teacher", "more", "repeats"}: all ranks take a step together, each on its
rows, and one of them the same step alone. OUT/<rank>.json has the relative difference of the update by job and network.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import two_ranks
from ddx.cli.leaving import leave
from ddx.teachers.registry import load_teacher
from ddx.training.distributed import Ranks
from ddx.training.sharding import make_sharding


def step(job: dict[str, Any], ranks: Ranks, rows: list[slice], kind: str) -> dict[str, Tensor]:
    """Return the update of a job's step by these ranks; `kind` "none" does not shard."""
    dtype = getattr(torch, job.get("teacher_dtype", "float32"))
    teacher = load_teacher(job["teacher"], device="cpu", dtype=dtype, resolution=job.get("resolution"))
    case = two_ranks.Case(**job["case"])
    return two_ranks.update(case, teacher, ranks, rows, make_sharding(kind, ranks), **job.get("more", {}))


def compare(jobs: list[dict[str, Any]], rank: int, world: int) -> dict[str, dict[str, float]]:
    """Return how far an update together is from the one alone, for this rank's share of the jobs."""
    found: dict[str, dict[str, float]] = {}
    each = 4 // world
    own = [slice(each * rank + k, each * rank + k + 1) for k in range(each)]
    for first in range(0, len(jobs), world):
        group = jobs[first : first + world]
        ours = [step(job, Ranks(rank, world), own * job.get("repeats", 1), job["kind"]) for job in group]
        if rank < len(group):  # the others' meanwhile
            # in micro-batches of one too: larger products round differently
            alone = [slice(k, k + 1) for k in range(4)] * group[rank].get("repeats", 1)
            expected = step(group[rank], Ranks(), alone, "none")
            assert all(bool(value.any()) for value in expected.values()), group[rank]
            found[str(first + rank)] = {
                name: float((ours[rank][name].float() - value.float()).norm() / value.float().norm())
                for name, value in expected.items()
            }
    return found


def main(out: Path, jobs: list[dict[str, Any]]) -> None:
    """Write the differences."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["LOCAL_WORLD_SIZE"] = os.environ.get("MACHINE", os.environ["LOCAL_WORLD_SIZE"])  # torchrun sets its own
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(out / "group").as_uri(), rank=rank, world_size=world)
    found = compare(jobs, rank, world)
    dist.destroy_process_group()
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    leave(0)
