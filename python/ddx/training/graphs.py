"""CUDA graphs of a turn's passes: forward, loss and backward of a micro-batch, recorded once and replayed.

A graph repeats the same operations on the same addresses. So its batch is copied to where the first one was, noise is
drawn on the device by the keys of the rows, gradients stay where they are and are zeroed, and all that the host decides
is part of a graph's name: the turn, the shapes, what the method takes from the step (`Method.host_numbers`), and how
many draws of the rows' random numbers came before. What is not a network's pass runs as ever: clipping, the optimiser,
averages and counters, some thirty launches.

The first two passes of a name run as they are, on the stream that the third is recorded on. They compile kernels, make
the gradients, and show whether the code sends the same numbers from the host each time. What cannot be recorded runs
without a graph for good, and says why once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddx.device import Sends
from ddx.errors import first_line
from ddx.methods.base import Batch, Losses, Method
from ddx.methods.parts.random_numbers import KeyedNumbers
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks

WARM_UP = 2
MOST = 32  # graphs; each holds the memory that its passes take at once, which all of them share

Pass = Callable[[Batch], Losses]


def why_no_graphs(config: DistillConfig, method: Method, device: torch.device, world: int) -> str | None:
    """Return why the steps of a run are not recorded, None if they are."""
    if device.type != "cuda":
        return "the run is not on a GPU"
    if world > 1:
        return "several processes exchange gradients within a backward pass"
    if config.dtype == "fp16":
        return "fp16 scales losses by a number that the host changes"
    if offloaded := [name for name in ("activations", "frozen") if name in config.offload]:
        return f"offload = {', '.join(offloaded)} takes memory of the host within a pass"
    if config.loss_balance != "none":
        return f"loss_balance = {config.loss_balance} parts two gradients on the host"
    if method.host_numbers(0, 0.0) is None:
        return f"the losses of {config.method} may choose rows or stages on the host"
    if not method.teacher.text_is_masked:
        return f"{method.teacher.family} cuts texts to lengths that the host reads"
    return None


@dataclass
class _Recording:
    """A graph, or what is known on the way to one."""

    runs: int = 0
    sends: Sends = field(default_factory=Sends)
    refused: bool = False
    graph: Any = None
    batch: Batch | None = None  # where the graph reads
    losses: Losses | None = None  # where it writes
    draws: int = 0  # of the rows' numbers, after it


class Graphs:
    """The graphs of a run."""

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self.device, self.say = device, say
        self.stream = torch.cuda.Stream(device)
        self._known: dict[Hashable, _Recording] = {}
        self._pool: Any = None

    def run(self, name: Hashable, batch: Batch, passes: Pass) -> Losses:
        """Return what `passes` returns for the batch, without its graph of derivatives; gradients are added to.

        `passes` depends on the batch's tensors and numbers, on `name`, and on tensors that stay where they are. What is
        returned stands until the next call.
        """
        place = name, signature(batch)
        found = self._known.setdefault(place, _Recording())
        if found.refused or (found.graph is None and len(self._known) > MOST):
            return passes(batch)
        if found.graph is None and found.runs < WARM_UP:
            return self._warm_up(found, batch, passes)
        if found.graph is None and not self._record(found, batch, passes):
            return passes(batch)
        assert found.batch is not None and found.losses is not None
        copy_batch(batch, found.batch)
        found.graph.replay()
        batch.random.draws = found.draws
        return found.losses

    def _warm_up(self, found: _Recording, batch: Batch, passes: Pass) -> Losses:
        found.runs += 1
        _ = batch.random.keys  # sent before anybody listens: these are other ones in each step
        now = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream), found.sends.of_a_run():
            losses = passes(batch)
        now.wait_stream(self.stream)
        self._check(found)
        return losses

    def _record(self, found: _Recording, batch: Batch, passes: Pass) -> bool:
        """Record the graph; False, and the batch as it was, where that fails."""
        drawn = batch.random.draws
        found.batch = standing(batch)
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self.device)
            with (
                found.sends.of_a_run(),
                # the threads that read data may allocate meanwhile
                torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"),
            ):
                found.losses = passes(found.batch)
        except RuntimeError as error:
            found.refused, found.batch = True, None
            self.say(f"a step runs without a CUDA graph: {first_line(error)}")
            batch.random.draws = drawn
            return False
        self._check(found)
        if found.refused:
            return False
        found.graph, found.draws = graph, found.batch.random.draws
        self._pool = self._pool or graph.pool()
        return True

    def _check(self, found: _Recording) -> None:
        if found.sends.differs:
            found.refused = True
            self.say("a step runs without a CUDA graph: it sends other numbers to the device each time")


def signature(batch: Batch) -> Hashable:
    """Return what must be equal of two batches for one graph: shapes and dtypes, and the draws before."""
    parts = tuple(None if part is None else (tuple(part.shape), part.dtype) for part in _tensors(batch))
    return parts, id(batch.null), batch.random.draws


def standing(batch: Batch) -> Batch:
    """Return a copy of the batch in memory of its own, for a graph to read; `null` is the run's, and shared."""
    condition = dataclasses.replace(
        batch.condition,
        tokens=batch.condition.tokens.clone(),
        mask=batch.condition.mask.clone(),
        pooled=_cloned(batch.condition.pooled),
        sizes=_cloned(batch.condition.sizes),
        counts=None,  # lengths that the host knows are another batch's next time
    )
    return dataclasses.replace(
        batch,
        x0=batch.x0.clone(),
        condition=condition,
        noise=_cloned(batch.noise),
        neighbour=_cloned(batch.neighbour),
        random=KeyedNumbers(batch.random.keys.clone(), batch.random.draws),
    )


def copy_batch(source: Batch, target: Batch) -> None:
    """Write a batch where another one is."""
    for value, place in zip(_tensors(source), _tensors(target), strict=True):
        if value is not None and place is not None:
            place.copy_(value, non_blocking=True)


def _tensors(batch: Batch) -> tuple[Tensor | None, ...]:
    text = batch.condition
    return (
        *(batch.x0, text.tokens, text.mask, text.pooled, text.sizes),
        *(batch.noise, batch.neighbour, batch.random.keys),
    )


def _cloned(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def make_graphs(
    config: DistillConfig, method: Method, ranks: Ranks, say: Callable[[str], None] = lambda text: None
) -> Graphs | None:
    """Return the graphs of a run that asks for them and can have them."""
    if not config.cuda_graphs or why_no_graphs(config, method, ranks.device, ranks.world) is not None:
        return None
    return Graphs(ranks.device, say)
