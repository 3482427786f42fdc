"""What two processes under `torchrun` do for `training/test_two_ranks.py`: every method's update, and one real run.

    torchrun --nproc-per-node 2 two_ranks.py TEACHER OUT every|few [the arguments of ddx, as JSON]

TEACHER is small, and OUT/wide has one whose layers are wide enough to be stored in 8 bits.

Both take a step of every case together, each on its rows and in micro-batches of one. The same step alone, of all rows
at once, is taken by one of them. OUT/<rank>.json has the relative difference of the update by case and network.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ddx.cli.leaving import leave
from ddx.cli.main import run
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.registry import METHODS, load_method, trainable_spec
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.sharding import Sharding
from ddx.training.spread_tensors import whole
from ddx.training.trainer import Trainer
from distilling import AT_ONCE, CAPTIONS, make_batch

BALANCES = ("none", "norm", "project")
SECOND = ("dmd", "dmd2", "sida", "add", "sana-sprint", "freeflow")  # whose student has a second loss by itself
# so few rows must have a correction, and an interval: the last matrix is that of its embedder
OWN: Mapping[str, Mapping[str, Any]] = {
    "dmd2": {"num_steps": 2},
    "sida": AT_ONCE["sida"],
    "freeflow": {"correction_share": 0.5},
    "meanflow": {"same_time_share": 0.0},
}


@dataclass(frozen=True)
class Case:
    """A method with what is beside its own loss."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    discriminator: Mapping[str, Any] = field(default_factory=dict)
    balance: str = "none"
    lora_rank: int = 0
    base_bits: int | None = None

    def __str__(self) -> str:
        beside = "with a discriminator" if self.discriminator else "alone"
        bits = "" if self.base_bits is None else f", {self.base_bits} bits"
        return f"{self.method} {beside}, balance {self.balance}, rank {self.lora_rank}{bits}"


FEW = (("sana-sprint", "norm"), ("freeflow", "norm"), ("dmd2", "project"), ("scm", "none"), ("meanflow", "none"))


def cases(*, every: bool) -> Iterator[Case]:
    """Yield every method alone and with a discriminator that is balanced; with each balance where a loss is its own.

    Not `every`: methods between whom each of the ways occurs by which rows of a batch meet.
    """
    yield Case("lcm", lora_rank=4, base_bits=8)
    judge = {"gan_weight": 0.1, "heads": "attention", "gan_loss": "relativistic", "r1_weight": 0.1}
    if not every:
        yield from (Case(name, OWN.get(name, {}), balance=balance) for name, balance in FEW)
        yield Case("lcm", {}, judge, "norm", lora_rank=4)
        return
    for name, spec in {**METHODS, "preparation": trainable_spec("preparation")}.items():
        own = OWN.get(name, {})
        yield from (Case(name, own, balance=balance) for balance in (BALANCES if name in SECOND else BALANCES[:1]))
        if spec.takes_discriminator:
            yield Case(name, own, {"gan_weight": 0.1}, "norm")
    yield from (Case("lcm", {}, judge, balance, lora_rank=4) for balance in BALANCES)


def trainer_of(
    case: Case,
    teacher: Teacher,
    ranks: Ranks,
    sharding: Sharding | None = None,
    say: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> Trainer:
    """Return a fresh trainer; more: settings over those that make steps comparable."""
    spec = trainable_spec(case.method)
    # steps that are nearly in proportion to the gradient: Adam's own magnify roundings of what is next to zero
    steady = {"learning_rate": 0.3, "adam_epsilon": 1.0, "weight_decay": 0.0, "clip_norm": 1e9, "warmup_steps": 0}
    given = {
        "batch_size": 4,
        "loss_balance": case.balance,
        "lora_rank": case.lora_rank,
        "base_bits": case.base_bits,
        "gradient_checkpointing": False,
    }
    config = DistillConfig(**{**spec.method.defaults, **steady, **given, "ema_half_life": 0.0, **more})
    discriminator = AddedDiscriminatorConfig(**case.discriminator)
    method = load_method(case.method, spec.config(**case.settings), teacher, discriminator)
    dtype = {"auto": torch.float32, "bf16": torch.bfloat16}[config.dtype]
    return Trainer(method, config, ranks, dtype, say=say, sharding=sharding)


def update(
    case: Case, teacher: Teacher, ranks: Ranks, rows: list[slice], sharding: Sharding | None = None, **more: Any
) -> dict[str, Tensor]:
    """Return what a step of a fresh trainer adds to each network's weights, and what it carries to the next one."""
    trainer = trainer_of(case, teacher, ranks, sharding, **more)
    before = {name: joined(trained.parameters) for name, trained in trainer.trained.items()}
    batches = [make_batch(teacher, rows=part) for part in rows]
    if trainer.method.reads_captions:
        batches = [replace(batch, captions=CAPTIONS[part]) for batch, part in zip(batches, rows, strict=True)]
    trainer.step(0, batches)
    found = {name: joined(trained.parameters) - before[name] for name, trained in trainer.trained.items()}
    for name, average in trainer.all_averages().items():
        found[f"average {name}"] = joined(average.parameters().values())
    if case.balance == "norm":
        norms = trainer.trained["student"].balance.norms
        assert (norms > 0.0).all(), case
        found["norms"] = norms
    return found


def joined(values: Iterable[Tensor]) -> Tensor:
    return torch.cat([whole(value.detach()).flatten() for value in values])


def compare(teacher: Teacher, wide: Path, rank: int, world: int, *, every: bool) -> dict[str, dict[str, float]]:
    """Return how far an update together is from the one alone, for this rank's share of the cases."""

    def teacher_of(case: Case) -> Teacher:  # whose base a run stores in fewer bits for good
        return teacher if case.base_bits is None else load_teacher(wide, device="cpu")

    together, alone = Ranks(rank, world), Ranks()
    found: dict[str, dict[str, float]] = {}
    whole, own = torch.arange(4.0)[:, None], slice(2 * rank, 2 * rank + 2)
    assert torch.equal(together.rolled(whole[own]), whole.roll(1, 0)[own])
    chosen = list(cases(every=every))
    for group in (chosen[start : start + world] for start in range(0, len(chosen), world)):
        ours = [
            update(case, teacher_of(case), together, [slice(2 * rank + k, 2 * rank + k + 1) for k in (0, 1)])
            for case in group
        ]
        if rank < len(group):  # the others' meanwhile
            case, values = group[rank], ours[rank]
            expected = update(case, teacher_of(case), alone, [slice(0, 4)])
            assert all(bool(value.any()) for value in expected.values()), case
            found[str(case)] = {
                name: float((values[name] - value).norm() / value.norm()) for name, value in expected.items()
            }
    return found


def main(teacher: Path, out: Path, every: bool, lines: list[list[str]]) -> int:
    """Write the differences, then do what the command lines say."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    # a group of its own: that of the run is the run's to begin and to end
    dist.init_process_group("gloo", init_method=(out / "group").as_uri(), rank=rank, world_size=world)
    found = compare(load_teacher(teacher, device="cpu"), out / "wide", rank, world, every=every)
    dist.destroy_process_group()
    (out / f"{rank}.json").write_text(json.dumps(found))
    return next((code for line in lines if (code := run(line))), 0)


if __name__ == "__main__":
    leave(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "every", json.loads(sys.argv[4])))
