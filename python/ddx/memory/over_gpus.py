"""One step of a run that is spread over GPUs: each one's peak, and what it receives, from the fake run of one.

With `--shard full` a GPU of N holds an Nth of weights, gradients, moments and averages, and all of its own rows'
activations. Beside them, while a block computes, that block and the next are whole as they are stored, with a copy in
the compute dtype and, backwards, their gradients; so are each network's weights around its blocks. A network's
blocks are received once a pass, forwards or backwards, and what is around them once a turn; gradients are sent away
once a turn that trains it.

The fake run counts activations, passes and turns. What is shared out, gathered and sent is arithmetic on top of it: no
process group is there, and none of it was measured on GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ddx.memory.fake_run import AVERAGES, GRADIENTS, OPTIMIZER, WEIGHTS, Made, Pass, TurnBegins
from ddx.memory.ledger import BLOCK, Ledger, Peak, Use
from ddx.teachers.blocks import blocks_of

STATES = (WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES)
CASTS = "casts"
CAST, GRADIENT = 2, 4  # bytes of a weight in the compute dtype, and of its gradient


@dataclass
class SharedPeak(Peak):
    """`shared`: the most of a GPU of each number of them, without what is gathered."""

    shared: tuple[int, ...] = ()

    def higher(self, other: Peak) -> Peak:
        """Each of the peaks on its own."""
        assert isinstance(other, SharedPeak)
        highest = super().higher(other)
        return SharedPeak(highest.num_bytes, highest.during, highest.by_use, _each_higher(self.shared, other.shared))


class SharedLedger(Ledger):
    """A ledger that also sees what a GPU would hold that has its share of the states; and counts passes and turns."""

    peak: SharedPeak

    def __init__(self, worlds: Sequence[int], *, block: int = BLOCK) -> None:
        super().__init__(block=block)
        self.worlds = tuple(worlds)
        self.peak = SharedPeak(shared=(0,) * len(self.worlds))
        self.passes, self.turns, self.updates = Counter[str](), Counter[str](), Counter[str]()
        self._seen = set[str]()
        self.weights: dict[str, Weights] = {}
        self._times = 1

    def told(self, event: object) -> None:
        """Count passes, as often as their turn is taken in a step, and weights."""
        if isinstance(event, Made):
            self.weights = {
                name: Weights.of(network, trained=name in event.trained) for name, network in event.networks.items()
            }
        elif isinstance(event, TurnBegins):
            self._times = event.times
            self._seen.clear()
            self.updates.update(dict.fromkeys(event.trains, event.times))
        elif isinstance(event, Pass):
            self.passes[event.owner] += self._times
            self.turns[event.owner] += 0 if event.owner in self._seen else self._times
            self._seen.add(event.owner)

    @contextmanager
    def casting(self, owner: str) -> Iterator[None]:
        """Keep copies of weights apart: whoever gathers blocks has none beyond theirs."""
        with self.using(Use(owner, CASTS)):
            yield

    def bump(self, sizes: Mapping[Use, int]) -> None:
        """See :meth:`Ledger.bump`."""
        shared = self.peak.shared
        if self._notices:
            shared = _each_higher(shared, self._shared(Counter(self._sums) + Counter(sizes)))
        super().bump(sizes)
        self.peak = SharedPeak(self.peak.num_bytes, self.peak.during, self.peak.by_use, shared)

    def forget_peak(self) -> None:
        """See :meth:`Ledger.forget_peak`."""
        self.peak = self._as_peak()
        self.peak.shared = self._shared(self._sums)

    def _look(self) -> None:
        if not self._notices:
            return
        shared = _each_higher(self.peak.shared, self._shared(self._sums))
        super()._look()
        self.peak.shared = shared

    def _as_peak(self) -> SharedPeak:
        peak = super()._as_peak()
        return SharedPeak(peak.num_bytes, peak.during, peak.by_use)

    def _shared(self, sums: Mapping[Use, int]) -> tuple[int, ...]:
        states = sum(size for use, size in sums.items() if use.kind in STATES)
        casts = sum(size for use, size in sums.items() if use.kind == CASTS)
        others = sum(sums.values()) - states - casts
        return tuple(others + (states // world if world > 1 else states + casts) for world in self.worlds)


def _each_higher(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


@dataclass(frozen=True)
class Weights:
    """The bytes of a network's weights as they are stored: all, those of its largest block, those around the blocks.

    gradients: bytes of those of one update; 0 of a network that is not trained. cast: of the largest block, cast.
    """

    total: int
    block: int
    around: int
    gradients: int
    cast: int

    @classmethod
    def of(cls, network: nn.Module, *, trained: bool) -> Weights:
        """Count them."""
        blocks = [list(block.parameters()) for block in blocks_of(network)]
        largest = max(blocks, key=_num_bytes, default=[])
        total = _num_bytes(network.parameters())
        num_trained = sum(value.numel() for value in network.parameters() if value.requires_grad or trained)
        return cls(
            total=total,
            block=_num_bytes(largest),
            around=total - sum(map(_num_bytes, blocks)),
            gradients=GRADIENT * num_trained if trained else 0,
            cast=CAST * sum(value.numel() for value in largest),
        )


@dataclass(frozen=True)
class OverGpus:
    """A step of one row a GPU. `peaks`, in bytes, by the number of GPUs, each with its share of the states.

    passes: of each network in a step, forwards and backwards. turns: those with such a pass. updates: of each network.
    """

    weights: dict[str, Weights]
    peaks: dict[int, int]
    passes: dict[str, int]
    turns: dict[str, int]
    updates: dict[str, int]

    def received(self, world: int) -> int:
        """Bytes that a GPU receives in a step with shares over `world` of them."""
        return round((self.gathered() + self._gradients()) * (world - 1) / world)

    def gathered(self) -> int:
        """Bytes of the weights that are made whole in a step: blocks for each pass, what is around them once a turn."""
        blocks = sum(
            num * (self.weights[owner].total - self.weights[owner].around) for owner, num in self.passes.items()
        )
        return blocks + sum(num * self.weights[owner].around for owner, num in self.turns.items())

    def received_whole(self, world: int) -> int:
        """Bytes that a GPU receives in a step where each holds everything: gradients are summed in a ring."""
        return round(2 * self._gradients() * (world - 1) / world)

    def received_between(self, inside: int, groups: int) -> int:
        """Bytes that a GPU receives from other machines, of which each holds everything in `inside` shares."""
        return round(2 * self._gradients() / inside * (groups - 1) / groups)

    def _gradients(self) -> int:
        return sum(num * self.weights[owner].gradients for owner, num in self.updates.items())


def gathered(weights: Mapping[str, Weights]) -> int:
    """Bytes of a GPU that are whole for a while: two blocks as they are stored, one cast, and its gradients; and the
    weights around the blocks of all networks, with the gradients of those.
    """
    blocks = (2 * it.block + it.cast + (GRADIENT * it.cast // CAST if it.gradients else 0) for it in weights.values())
    around = sum(it.around * (2 if it.gradients else 1) for it in weights.values())
    return max(blocks, default=0) + around


def _num_bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
