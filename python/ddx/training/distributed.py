"""Data parallelism under torchrun: who am I, who else is there, and a DDP that can be used as the network itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ddx.device import find_device
from ddx.errors import DdxError

Result = TypeVar("Result")
PATIENCE = timedelta(days=7)  # nccl ends a run after ten minutes, gloo after thirty


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None  # of all ranks, for what may take one of them long; None: torch's own
    meeting: Store | None = None  # where a rank leaves word without waiting for the others; None where nobody asked

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all ranks."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def rolled(self, value: Tensor) -> Tensor:
        """Return for each row `[B, ...]` the one before it among those of all ranks, for the first one the last.

        Every rank has as many rows.
        """
        if self.world == 1:
            return value.roll(1, 0)
        last = [torch.empty_like(value[-1:]) for _ in range(self.world)]
        dist.all_gather(last, value[-1:].contiguous())
        return torch.cat([last[self.rank - 1], value[:-1]])

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; on the CPU, so no device waits for it."""
        if self.world == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def first(self, work: Callable[[], Result]) -> Result:
        """Return on every rank what `work` returns on the first one, the only one to do it; raise its DdxError too."""
        if self.world == 1:
            return work()
        outcome: Result | DdxError | None = None
        if self.is_first:
            try:
                outcome = work()
            except DdxError as error:
                outcome = error
        outcome = self.share(outcome)
        if isinstance(outcome, DdxError):
            raise outcome
        return cast(Result, outcome)

    def agreed(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns here; where it raises a DdxError on any rank, raise that on all of them."""
        if self.world == 1:
            return work()
        outcome: Result | DdxError
        try:
            outcome = work()
        except DdxError as error:
            outcome = error
        for failed in self.gathered(outcome if isinstance(outcome, DdxError) else None):
            if failed is not None:
                raise failed
        return cast(Result, outcome)

    def share(self, value: Any) -> Any:
        """Return the first rank's `value` on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def gathered(self, value: Result) -> list[Result]:
        """Return the values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value, group=self.patient)
        return box

    def smallest(self, value: Tensor) -> Tensor:
        """Return the smallest of each element of `value` over all ranks."""
        if self.world > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    def wait(self) -> None:
        """Wait until every rank is here, however long one of them writes or reads files."""
        if self.world > 1:
            dist.barrier(group=self.patient)


_joined = count(1)


@cache
def _meeting_point() -> Store:
    """Return where the ranks leave their addresses: one for the life of the process, served by the first rank."""
    store: Store = next(rendezvous("env://"))[0]
    return store


def _new_store() -> Store:
    """Return a store with no keys: a rank that joins again must not meet the addresses of the time before."""
    return PrefixStore(f"join-{next(_joined)}", _meeting_point())


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """Join the other processes of this run, which `torchrun` names in the environment; alone without it."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = find_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Ranks(0, 1, place)
        return
    # gloo beside nccl: small votes on the CPU never wait for the GPU
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    store = _new_store()
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))
        yield Ranks(rank, world, place, patient, store)
    finally:
        dist.destroy_process_group()


class Replica(DistributedDataParallel):
    """DDP through which attributes of the wrapped network are seen, so that it stands in for the network."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def replicate(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Return `network`, with its gradients averaged over several ranks; one that is spread does so itself."""
    if ranks.world == 1 or isinstance(network, FSDPModule):
        return network
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return Replica(network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def without_sync(network: nn.Module, really: bool) -> AbstractContextManager[Any]:
    """Return a context in which gradients are only accumulated, to be averaged by a later backward pass.

    Those of a network that is spread become shares all the same, or they would be whole on every rank until then.
    """
    if really and isinstance(network, Replica):
        return network.no_sync()
    return _within_machines(network) if really and isinstance(network, FSDPModule) else nullcontext()


@contextmanager
def _within_machines(network: FSDPModule) -> Iterator[None]:
    network.set_requires_all_reduce(False)
    try:
        yield
    finally:
        network.set_requires_all_reduce(True)
