"""The networks of a run that shards: built on the host one after the other, each spread before the next one comes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from ddx.methods.base import STUDENT, NetworkSpec
from ddx.teachers.base import Teacher
from ddx.training.distributed import Ranks
from ddx.training.ema import EMA, Weights
from ddx.training.sharding import Sharding, share_weights
from ddx.training.spread_tensors import gathered

Build = Callable[[NetworkSpec], nn.Module]


class SpreadNetworks:
    """The teacher's network and those of a method, spread; `hollow` is the student's module tree without weights."""

    def __init__(self, sharding: Sharding, teacher: Teacher, *, low_rank: bool) -> None:
        self.sharding, self.teacher, self.low_rank = sharding, teacher, low_rank
        self.hollow: nn.Module | None = None

    def build(self, specs: Sequence[NetworkSpec], build: Build) -> Iterator[tuple[NetworkSpec, nn.Module]]:
        """Yield each network, spread, in this order; the teacher's is by then.

        Networks around a shared frozen backbone are all built before the backbone is spread, and hold its shares.
        """
        with on_host(self.teacher):
            # first, as in a run that does not shard: what opening the backbone draws moves the matrices' random numbers
            around = {spec.name: build(spec) for spec in specs if spec.lora} if self.low_rank else {}
            base = self.teacher.network()
        names = {id(value): name for name, value in base.named_parameters()}
        shared = {
            name: {own: names[id(value)] for own, value in tree.named_parameters() if id(value) in names}
            for name, tree in around.items()
        }
        self._spread(base)
        for spec in specs:
            network = around.pop(spec.name, None)
            if network is None:
                # what a method adds looks at the teacher's features, where the teacher computes
                with on_host(self.teacher) if spec.lora else nullcontext():
                    network = build(spec)
            if spec.name == STUDENT:
                self.hollow = hollow_copy(network)
            self._spread(network)
            share_weights(network, shared.get(spec.name, {}), base)
            yield spec, network

    def whole_student(self, student: nn.Module, ranks: Ranks, average: EMA | Weights | None) -> nn.Module | None:
        """Return the student on the first rank's host, None on the others; every rank must ask.

        Its tensors come one at a time. average: what it has in place of its own weights; of other values than an
        average's the first rank's.
        """
        assert self.hollow is not None
        state = student.state_dict()
        dtypes = {name: value.dtype for name, value in state.items()}
        found = gathered({**state, **average.parameters()} if isinstance(average, EMA) else state, ranks)
        if not ranks.is_first:
            return None
        if isinstance(average, Weights):
            found |= average.values
        self.hollow.load_state_dict({name: value.to(dtypes[name]) for name, value in found.items()}, assign=True)
        return self.hollow.eval()

    def _spread(self, network: nn.Module) -> None:
        self.sharding.shard(network)
        self.teacher.fast(network)  # chosen by the device of its weights, which was the host


@contextmanager
def on_host(teacher: Teacher) -> Iterator[None]:
    """Within, networks are opened in the host's memory: the device never holds a whole one."""
    home, teacher.home = teacher.home, torch.device("cpu")
    try:
        yield
    finally:
        teacher.home = home


def hollow_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters have no memory; buffers are those of `network`."""
    memo: dict[int, object] = {id(b): b for b in network.buffers()}
    for value in network.parameters():
        memo[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)
    return copy.deepcopy(network, memo)
