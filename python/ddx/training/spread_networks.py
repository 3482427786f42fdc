"""The networks of a run that shards: built one after the other, each spread before the next one comes.

A copy of the teacher's network is built without memory for its weights, and each rank reads its share of them from the
teacher's files. Where that cannot be, it is opened whole in the host's memory, and the log says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ddx.checkpoints.shares import Spread, copy_into
from ddx.methods.base import STUDENT, NetworkSpec
from ddx.teachers.base import Teacher
from ddx.teachers.stored_weights import StandIn, stand_ins, weights_later
from ddx.training.distributed import Ranks
from ddx.training.ema import EMA, Weights
from ddx.training.sharding import Sharding, share_weights
from ddx.training.spread_tensors import gathered

Build = Callable[[NetworkSpec], nn.Module]


class SpreadNetworks:
    """The teacher's network and those of a method, spread; `hollow` is the student's module tree without weights."""

    def __init__(
        self, sharding: Sharding, teacher: Teacher, *, low_rank: bool, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.sharding, self.teacher, self.low_rank, self.say = sharding, teacher, low_rank, say
        self.hollow: nn.Module | None = None
        self._said: set[str] = set()

    def build(self, specs: Sequence[NetworkSpec], build: Build) -> Iterator[tuple[NetworkSpec, nn.Module]]:
        """Yield each network, spread, in this order; the teacher's is by then.

        Networks around a shared frozen backbone are all built before the backbone is spread, and hold its shares.
        """
        with self._opening():
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
                with self._opening() if spec.lora else nullcontext():
                    network = build(spec)
            if spec.name == STUDENT:
                self.hollow = hollow_copy(network)
            self._spread(network, shared.get(spec.name, {}), base)
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

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Within, copies of the teacher's network are opened without memory, or in that of the host."""
        with self.teacher.on_host(), weights_later() as wish:
            yield
        for reason in (reason for reason in wish.refused if reason not in self._said):
            self._said.add(reason)
            self.say(f"each process opens the networks whole in the host's memory first: {reason}")

    def _spread(
        self, network: nn.Module, shared: Mapping[str, str] = MappingProxyType({}), base: nn.Module | None = None
    ) -> None:
        """Spread a network; `shared`: the names in `base`, by own, of the weights that it does not hold itself."""
        stored = emptied(network)
        self.sharding.shard(network)
        if base is not None:
            share_weights(network, shared, base)
        take_shares(network, stored, self.teacher.device)
        self.teacher.fast(network)  # chosen by the device of its weights, which was the host


def emptied(network: nn.Module) -> dict[str, Tensor | Spread]:
    """Put parameters on the meta device in the places of stand-ins; return what those stood for, by name."""
    stored = {name: value.stored for name, value in stand_ins(network).items()}
    made: dict[StandIn, nn.Parameter] = {}  # by identity: one that is used twice stays one
    for module in network.modules():
        for name, value in module._parameters.items():
            if isinstance(value, StandIn):
                if value not in made:
                    place = torch.empty(value.shape, dtype=value.dtype, device="meta")
                    made[value] = nn.Parameter(place, requires_grad=value.requires_grad)
                module._parameters[name] = made[value]
    return stored


@torch.no_grad()
def take_shares(network: nn.Module, stored: Mapping[str, Tensor | Spread], device: torch.device) -> None:
    """Give the parameters of a spread network that have no memory this rank's share of what is stored."""
    shares: dict[str, nn.Parameter] = {}
    made: dict[Tensor, nn.Parameter] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        if value.is_meta:
            if value not in made:
                share = torch.empty_like(value, device=device)
                copy_into(share, stored[name])
                made[value] = nn.Parameter(share, requires_grad=value.requires_grad)
            shares[name] = made[value]
    network.load_state_dict(shares, strict=False, assign=True)


def hollow_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters have no memory; buffers are those of `network`."""
    memo: dict[int, object] = {id(b): b for b in network.buffers()}
    for value in network.parameters():
        memo[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)
    return copy.deepcopy(network, memo)
