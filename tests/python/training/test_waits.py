"""No training step waits for the device: every method on tensors without data, whose values nobody can ask for.

The device is torch's `meta`: whatever reads a value of it (`.item()`, `bool()`, `.cpu()`, `nonzero()`) raises, and the
mode below refuses copies to it that the host would wait for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddx.device import send
from ddx.methods.base import STUDENT, Batch, NetworkSpec
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.registry import METHODS
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.optimizer import guarded_step, measure_clip
from ddx.training.trained import Trained
from ddx.training.trainer import Trainer
from distilling import make_batch, make_teacher, make_trainer

META = torch.device("meta")
aten: Any = torch.ops.aten


class NoBlockingCopies(TorchDispatchMode):
    """Raises where a tensor of the host with data is copied to the device and the host waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default:
            crosses = args[0].device.type == "cpu" and torch.device(kwargs.get("device") or "cpu") == META
            waits = not kwargs.get("non_blocking", False)
        elif func is aten.copy_.default:
            crosses = args[0].device == META and args[1].device.type == "cpu" and args[1].ndim > 0
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            crosses = waits = False
        assert not (crosses and waits), f"the host waits for a copy of {tuple(args[-1].shape)}"
        return func(*args, **kwargs)


class NoNumbersMadeThere(TorchFunctionMode):
    """Raises where numbers of Python become a tensor of the device: torch copies them, and the host waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor:
            assert args[0].device != META, "the host waits for a tensor made of numbers"
        if func in (torch.tensor, torch.as_tensor):
            place = kwargs.get("device")
            assert place is None or torch.device(place) != META, "the host waits for a tensor made of numbers"
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Teacher, Teacher]]]:
    """By kind the same tiny teacher on the host, which encodes text, and on the device."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # which has no form without data
        for kind in ("flow", "eps"):
            folder = tmp_path_factory.mktemp(kind) / "pipeline"
            host, device = make_teacher(kind, folder), load_teacher(folder, device=META, dtype="float32")
            null = host.null_condition().to(META)
            patch.setattr(device, "null_condition", lambda null=null: null)
            found[kind] = host, device
        yield found


def on_device(batch: Batch, rows: range) -> Batch:
    """The batch as `micro_batches` sends it."""
    return dataclasses.replace(
        batch,
        x0=send(batch.x0, META),
        condition=batch.condition.to(META, torch.float32),
        null=batch.null.to(META, torch.float32),
        random=RandomNumbers(0, 0, rows, META),
        neighbour=None if batch.neighbour is None else send(batch.neighbour, META),
    )


def device_trainer(teacher: Teacher, name: str, discriminator: AddedDiscriminatorConfig | None = None) -> Trainer:
    trainer = make_trainer(
        teacher, method=name, discriminator=discriminator, ranks=Ranks(device=META), optimizer="radam"
    )
    assert {p.device for trained in trainer.trained.values() for p in trained.parameters} == {META}
    return trainer


def step_without_waiting(trainer: Trainer, host: Teacher, micro_batches: int = 1) -> None:
    """Forward, backward, gradient norms and averages of every turn."""
    with NoBlockingCopies(), NoNumbersMadeThere():
        starts = range(0, 2 * micro_batches, 2)
        batches = [on_device(make_batch(host, rows=slice(k, k + 2)), range(k, k + 2)) for k in starts]
        for turn in trainer.method.turns(0):
            trainer._accumulate(turn, batches)
            for name in turn.trains:
                trained = trainer.trained[name]
                trained.balance.finish()
                clip = measure_clip((p.grad for p in trained.parameters), 1.0)
                trained.lost.end_step(clip.found_inf)
                trainer.meter.add_norm(name, clip.norm)
                for parameter in trained.parameters:
                    parameter.grad = None
        for _, average in trainer.averages.values():
            average.update(4)
        trainer.method.end_step(trainer.ranks.mean)


# What VP teachers add is in a few places that all methods share; on them a step of this test takes half a minute.
ON_VP = ("lcm", "sid", "shortcut")
# What a second micro-batch adds is the trainer's: of one network, of several in turns, of two losses that are balanced.
IN_TWO = ("ect", "dmd2", "sana-sprint")


@pytest.mark.parametrize(("name", "kind"), [(name, "eps" if name in ON_VP else "flow") for name in METHODS])
def test_no_method_waits_for_the_device(teachers: dict[str, tuple[Teacher, Teacher]], name: str, kind: str) -> None:
    host, device = teachers[kind]
    added = AddedDiscriminatorConfig(gan_weight=0.1) if METHODS[name].takes_discriminator else None
    step_without_waiting(device_trainer(device, name, added), host, micro_batches=2 if name in IN_TWO else 1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda value: value.sum().item(),
        lambda value: bool((value > 0.0).any()),
        lambda value: value.cpu(),
        lambda value: value.nonzero(),
        lambda value: torch.ones(3).to(value.device),
        lambda value: torch.tensor([1.0, 2.0], device=value.device),
        lambda value: value.new_tensor([1.0, 2.0]),
    ],
    ids=["item", "bool", "cpu", "nonzero", "blocking copy", "a tensor made of numbers", "another"],
)
def test_a_wait_is_seen(
    teachers: dict[str, tuple[Teacher, Teacher]], wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, device = teachers["flow"]
    trainer = device_trainer(device, "lcm")
    losses = trainer.method.losses

    def waiting(*arguments: Any) -> Any:
        found = losses(*arguments)
        wait(found.by_network[STUDENT])
        return found

    monkeypatch.setattr(trainer.method, "losses", waiting)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        step_without_waiting(trainer, host)


@pytest.mark.parametrize("optimizer", ["radam", "adamw"])
def test_a_restored_optimiser_keeps_its_counts_where_torch_keeps_them(optimizer: str) -> None:
    def make() -> Trained:
        torch.manual_seed(0)
        config = DistillConfig(optimizer=optimizer)
        place = META if optimizer == "radam" else torch.device("cpu")  # the fused one has no form without data
        return Trained(NetworkSpec(name=STUDENT), nn.Linear(3, 3, device=place), config, Ranks(device=place))

    def places(trained: Trained) -> dict[str, tuple[torch.device, torch.dtype]]:
        return {name: (value.device, value.dtype) for name, value in trained.optimizer_tensors().items()}

    first, second = make(), make()
    for parameter in first.parameters:
        parameter.grad = torch.ones_like(parameter)
    if optimizer == "radam":
        first.optimizer.step()
    else:
        guarded_step(first.optimizer, measure_clip((p.grad for p in first.parameters), 1.0), torch.zeros(()))
    second.load_optimizer_tensors(dict(first.optimizer_tensors()))
    assert places(second) == places(first)
    counts = {name: place for name, (place, _) in places(second).items() if name.endswith("|step")}
    assert set(counts.values()) == {torch.device("cpu")} and len(counts) == 2
    assert all(not torch.equal(v, torch.zeros(())) for n, v in second.optimizer_tensors().items() if n in counts)


def test_a_copy_to_the_device_is_of_equal_values() -> None:
    value: Tensor = torch.arange(6.0).reshape(2, 3)
    assert send(value, "cpu") is value
    assert send(value, META).shape == value.shape
