"""What a rank holds of model states, counted wherever they change; for `training/test_sharding.py`.

    torchrun --nproc-per-node N sharded_memory.py TEACHER OUT METHOD

OUT/<rank>.json has the peak of a run that shards, and of one that does not, in bytes: weights, also those that are
gathered, gradients, moments and averages of all networks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddx.cli.leaving import leave
from ddx.methods.registry import load_method, trainable_spec
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.sharding import Sharding, make_sharding
from ddx.training.spread_tensors import local
from ddx.training.trainer import Trainer
from distilling import make_batch


def held(trainer: Trainer) -> Iterator[Tensor]:
    """Yield everything that this rank holds of the networks."""
    for network in (trainer.method.teacher.network(), *trainer._modules().values()):
        for module in network.modules():
            state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
            for group in [] if state is None else state._fsdp_param_groups:
                for parameter in group.fsdp_params:
                    yield parameter._sharded_param_data
                    yield from parameter.all_gather_outputs
                    whole = getattr(parameter, "_unsharded_param", None)
                    if whole is not None and whole.grad is not None:
                        yield whole.grad
        yield from (local(value) for value in network.parameters())
    for trained in trainer.trained.values():
        yield from (local(p.grad) for p in trained.parameters if p.grad is not None)
        yield from (local(value) for value in trained.optimizer_tensors().values())
    for average in trainer.all_averages().values():
        yield from (local(value) for value in average.parameters().values())


class Peak(TorchDispatchMode):
    """Looks after every collective, and at the end: what is gathered is let go before the next one."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer, self.bytes, self.looks = trainer, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "fsdp"):
            self.look()
        return result

    def look(self) -> None:
        """Count what is held now."""
        self.looks += 1
        with torch._C._DisableTorchDispatch():
            storages = {s._cdata: s.nbytes() for s in (value.untyped_storage() for value in held(self.trainer))}
        self.bytes = max(self.bytes, sum(storages.values()))


def peak(folder: Path, method: str, ranks: Ranks, rows: list[slice], sharding: Sharding | None) -> int:
    """Return the most that a rank holds in its second step."""
    teacher, spec = load_teacher(folder, device="cpu"), trainable_spec(method)
    config = DistillConfig(**{**spec.method.defaults, "batch_size": 4, "optimizer": "adamw"})
    trainer = Trainer(load_method(method, spec.config(), teacher), config, ranks, torch.float32, sharding=sharding)
    trainer.step(0, [make_batch(teacher, 0, rows=part) for part in rows])
    batches = [make_batch(teacher, 1, rows=part) for part in rows]
    with Peak(trainer) as found:
        found.look()
        take = trainer._update

        def update(*arguments: Any) -> None:
            found.look()  # with the gradients of all weights
            take(*arguments)

        trainer._update = update  # type: ignore[method-assign]
        trainer.step(1, batches)
    assert sharding is None or found.looks > 20
    return found.bytes


def main(folder: Path, out: Path, method: str) -> None:
    """Write both peaks."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(out / "group").as_uri(), rank=rank, world_size=world)
    ranks, each = Ranks(rank, world), 4 // world
    own = [slice(each * rank + k, each * rank + k + 1) for k in range(each)]
    shared = peak(folder, method, ranks, own, make_sharding("full", ranks))
    alone = peak(folder, method, Ranks(), [slice(0, 4)], None) if rank == 0 else 0
    dist.barrier()
    dist.destroy_process_group()
    (out / f"{rank}.json").write_text(json.dumps([shared, alone]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    leave(0)
