"""Blocks of a network that are alike are counted once: what one takes, the others take.

A block is tried apart, forwards and backwards, with inputs like those that it is given. What it took is then entered
for every call of such a block: the most that was alive on the way, what it keeps for the backward pass, its copies of
weights in autocast's dtype. A network of many equal blocks is counted in the time of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ddx.memory.ledger import Ledger, Use
from ddx.teachers.blocks import blocks_of

Made = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype, bool]  # an output: see `_made`


class CannotRepeatError(Exception):
    """A block is differentiated in a way that is not entered, such as twice: its network must be counted in full."""


@dataclass(frozen=True)
class Toll:
    """What a block takes, in bytes beside what was alive before.

    casts: copies of its weights in autocast's dtype. keeps: what it keeps by itself from its first pass on, such as
    weights that it has joined. forward, backward: the most on the way, by kind. kept: what the
    backward pass needs, beside the inputs in `holds`. gradients: the places of parameters that get one.
    """

    casts: int
    keeps: int
    forward: dict[str, int]
    kept: int
    holds: tuple[int, ...]
    backward: dict[str, int]
    gradients: tuple[int, ...]
    made: tuple[Made, ...]
    spec: Any


class Repeats:
    """The tolls of the blocks that were tried so far; of runs of one teacher and device, so that they compare."""

    def __init__(self) -> None:
        self.tolls: dict[Any, Toll] = {}


class RepeatedBlocks:
    """Stands in for the blocks of some networks, while their steps are counted by `ledger`."""

    def __init__(self, ledger: Ledger, repeats: Repeats, gradients: str) -> None:
        """gradients: the kind of use that gradients of weights are."""
        self.ledger, self.tolls, self.gradients = ledger, repeats.tolls, gradients
        self.blocks: dict[int, _Block] = {}
        self._cast: dict[int, Tensor] = {}  # by block, until autocast forgets its copies
        self._kept: dict[int, Tensor | None] = {}  # by block; None where it holds them itself
        self._off = 0
        self._checkpointed = False
        self._need = torch.zeros((), requires_grad=True)  # outputs need gradients of weights, whatever the inputs need
        self.accumulates = torch.autograd.graph.get_gradient_edge(self._need).node

    def replace(self, network: nn.Module, owner: str) -> None:
        """Let the blocks of a network be entered in place of run, and the network where no gradient is asked for."""
        module: Any
        own = []
        for module in blocks_of(network):
            block = self.blocks.get(id(module)) or _Block(module, owner)
            own.append(block)
            if id(module) not in self.blocks:
                self.blocks[id(module)] = block
                module.forward = self._stand_in(block)
        whole: Any = network
        whole.forward = self._stand_in_for_network(_Block(network, owner), own)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Within, checkpoints of blocks are entered too, and autocast keeps no copy of a weight by itself."""
        kept = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with mock.patch.object(torch.utils.checkpoint, "checkpoint", self._checkpoint):
                yield
        finally:
            torch.set_autocast_cache_enabled(kept)

    def forget_casts(self) -> None:
        """Autocast is left."""
        self._cast.clear()

    def _stand_in(self, block: _Block) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._off or torch._C._functorch.peek_interpreter_stack() is not None:
                return block.forward(*args, **kwargs)
            checkpointed, self._checkpointed = self._checkpointed, False
            return self._enter(block, checkpointed, args, kwargs)

        return forward

    def _stand_in_for_network(self, network: _Block, blocks: list[_Block]) -> Callable[..., Any]:
        """The first pass of its kind runs, and tells what the others take."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._off or torch.is_grad_enabled() or any(block.module._forward_hooks for block in blocks):
                return network.forward(*args, **kwargs)
            values, spec = tree_flatten((args, kwargs))
            key = (
                network.signature,
                network.training,
                network.needs,
                tuple(_told(value) for value in values),
                str(spec),
                torch.is_autocast_enabled("cpu"),
            )
            if key not in self.tolls:
                result, self.tolls[key] = self._watch(lambda: network.forward(*args, **kwargs), values, blocks)
                return result
            toll = self.tolls[key]
            for block, casts, keeps in zip(blocks, toll.holds, toll.gradients, strict=True):
                self._cast_weights(block, casts, keeps)
            return self._made_anew(network, self.tolls[key], [v for v in values if isinstance(v, Tensor)])

        return forward

    def _watch(self, run: Callable[[], Any], values: list[Any], blocks: list[_Block]) -> tuple[Any, Toll]:
        """Return what a pass returns and takes; in `holds` and `gradients` what each block casts, and keeps."""
        ledger, before, cast = self.ledger, self.ledger.peak, sum(value.numel() for value in self._cast.values())
        base = ledger.begin_span()
        result = run()
        cast = sum(value.numel() for value in self._cast.values()) - cast
        size = ledger.span(base)[""] - cast
        ledger.peak = before.higher(ledger.peak)
        places = {v.untyped_storage()._cdata: k for k, v in enumerate(v for v in values if isinstance(v, Tensor))}
        casts, keeps = tuple(block.casts for block in blocks), tuple(block.keeps for block in blocks)
        return result, Toll(0, 0, {"": size}, 0, casts, {}, keeps, *_described(result, places))

    def _made_anew(self, block: _Block, toll: Toll, inputs: list[Tensor]) -> Any:
        """Return outputs like those of a pass without a graph."""
        self.ledger.bump(self._uses(block, toll.forward))
        return _assembled(toll, inputs, _make(toll.made))

    def _cast_weights(self, block: _Block, casts: int, keeps: int) -> None:
        block.casts, block.keeps = casts, max(block.keeps, keeps)
        if casts and id(block) not in self._cast:
            with self.ledger.casting(block.owner):
                self._cast[id(block)] = torch.empty(casts, dtype=torch.uint8)
        if keeps and id(block) not in self._kept:
            self._kept[id(block)] = torch.empty(keeps, dtype=torch.uint8)

    def _checkpoint(self, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """What stands in for torch's own: a block is told of it, in anything else all is run."""
        if not self._off and id(getattr(function, "__self__", None)) in self.blocks:
            self._checkpointed = True
            try:
                return function(*args)
            finally:
                self._checkpointed = False

        def whole(*inputs: Any) -> Any:
            with self.in_full():
                return function(*inputs)

        return _checkpoint(whole, *args, **settings)

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Within, blocks run, and nothing is entered in their place."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    def _enter(self, block: _Block, checkpointed: bool, args: Any, kwargs: Any) -> Any:
        values, spec = tree_flatten((args, kwargs))
        inputs = [value for value in values if isinstance(value, Tensor)]
        graph = torch.is_grad_enabled() and (block.needs or any(value.requires_grad for value in inputs))
        first = next((p for p in block.parameters if p.requires_grad), None)
        key = (
            block.signature,
            block.training,
            tuple(p.requires_grad for p in block.parameters),
            first is not None and first.grad is not None,
            tuple(_told(value) for value in values),
            str(spec),
            graph,
            checkpointed,
            torch.is_autocast_enabled("cpu"),
        )
        if key not in self.tolls:
            self.tolls[key] = self._try(block, checkpointed, values, spec, graph)
        toll = self.tolls[key]
        self._cast_weights(block, toll.casts, toll.keeps)
        if not graph:
            return self._made_anew(block, toll, inputs)
        return _assembled(toll, inputs, _Entered.apply(self, block, toll, checkpointed, self._need, *inputs))

    def _uses(self, block: _Block, sizes: dict[str, int]) -> dict[Use, int]:
        now = self.ledger.use
        return {Use(block.owner, k) if k == self.gradients else now: size for k, size in sizes.items()}

    def _try(self, block: _Block, checkpointed: bool, values: list[Any], spec: Any, graph: bool) -> Toll:
        """Run a block by itself, and leave everything as it was."""
        before, alive = [parameter.grad for parameter in block.parameters], self.ledger.now
        with self.in_full(), self.ledger.apart(), _cast_once():
            start = self.ledger.now
            with torch.set_grad_enabled(graph):
                self._run(block, checkpointed, [_like(value) for value in values], spec)
            casts = self.ledger.now - start
            toll = self._measure(block, checkpointed, values, spec, graph, casts)
        for parameter, gradient in zip(block.parameters, before, strict=True):
            parameter.grad = gradient
        keeps = max(self.ledger.now - alive, 0)
        if keeps:
            self._kept[id(block)] = None
        return dataclasses.replace(toll, casts=max(toll.casts - keeps, 0), keeps=keeps)

    def _run(self, block: _Block, checkpointed: bool, values: list[Any], spec: Any) -> Any:
        args, kwargs = tree_unflatten(values, spec)
        if not checkpointed:
            return block.forward(*args, **kwargs)
        return _checkpoint(block.forward, *args, use_reentrant=False, **kwargs)

    def _measure(
        self, block: _Block, checkpointed: bool, values: list[Any], spec: Any, graph: bool, casts: int
    ) -> Toll:
        ledger = self.ledger
        given = [_like(value) for value in values]
        # what needs gradients is made by an operation, so that it is alive only while the block holds it
        if graph:
            given = [v * 1 if isinstance(v, Tensor) and v.requires_grad else v for v in given]
        inputs = [value for value in given if isinstance(value, Tensor)]
        places = {value.untyped_storage()._cdata: k for k, value in enumerate(inputs)}
        base = ledger.begin_span()
        with torch.set_grad_enabled(graph):
            result = self._run(block, checkpointed, given, spec)
        forward = ledger.span(base)
        made, described = _described(result, places)
        outputs = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        new = {leaf.untyped_storage()._cdata: leaf for leaf in outputs if _made(leaf, places)[0] < 0}
        kept = ledger.now - base.now - sum(ledger.size(leaf) for leaf in new.values())
        fresh = [k for k, v in enumerate(inputs) if v.grad_fn is not None]
        keys = [v.untyped_storage()._cdata for v in inputs]
        del result, given, inputs, new
        holds: tuple[int, ...] = ()
        backward: dict[str, int] = {}
        gradients: tuple[int, ...] = ()
        if graph:
            # tensors of others, such as embeddings, are alive anyway
            holds = tuple(k for k in range(len(keys)) if k not in fresh or ledger.is_alive(keys[k]))
            wanted = [leaf for leaf in outputs if leaf.grad_fn is not None]
            given_back = [torch.empty_like(leaf) for leaf in wanted]
            base = ledger.begin_span()
            with torch.autocast("cpu", enabled=False):  # a backward pass is outside of it
                torch.autograd.backward(wanted, given_back)
            backward = ledger.span(base, of_kind=self.gradients)
            gradients = tuple(k for k, p in enumerate(block.parameters) if p.grad is not None)
        return Toll(casts, 0, forward, max(kept, 0), holds, backward, gradients, made, described)


@contextmanager
def _cast_once() -> Iterator[None]:
    """Within, autocast keeps its copies of weights; outside they are entered, see `RepeatedBlocks.within`."""
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)


class _Block:
    """A block with the forward pass of its own."""

    def __init__(self, module: nn.Module, owner: str) -> None:
        self.module, self.owner, self.forward = module, owner, module.forward
        self.parameters = list(module.parameters())
        self.signature = signature(module)
        self.casts = self.keeps = 0

    @property
    def needs(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters)

    @property
    def training(self) -> bool:
        return self.module.training


class _Entered(torch.autograd.Function):
    """A block's call, entered in the ledger."""

    @staticmethod
    def forward(
        ctx: Any, blocks: RepeatedBlocks, block: _Block, toll: Toll, checkpointed: bool, _: Tensor, *inputs: Tensor
    ) -> Any:
        ledger = blocks.ledger
        ledger.bump(blocks._uses(block, toll.forward))
        outputs = _make(toll.made)
        held = [inputs[k] for k in toll.holds]
        if toll.kept:
            held.append(torch.empty(toll.kept, dtype=torch.uint8))
        if id(block) in blocks._cast and not checkpointed:
            held.append(blocks._cast[id(block)])
        ctx.save_for_backward(*held)
        ctx.blocks, ctx.block, ctx.toll = blocks, block, toll
        ctx.shapes = [(value.shape, value.dtype) for value in inputs]
        return outputs

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        if torch.is_grad_enabled():
            raise CannotRepeatError
        blocks, block, toll = ctx.blocks, ctx.block, ctx.toll
        held = ctx.saved_tensors  # comes back from where it waited
        trains = torch._C._will_engine_execute_node(blocks.accumulates)  # not where inputs' gradients alone are wanted
        sizes = {kind: size for kind, size in toll.backward.items() if trains or kind != blocks.gradients}
        blocks.ledger.bump(blocks._uses(block, sizes))
        with blocks.ledger.unnoticed():
            for index in toll.gradients if trains else ():
                parameter = block.parameters[index]
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                blocks.ledger.enter(parameter.grad, Use(block.owner, blocks.gradients))
            needed = ctx.needs_input_grad[5:]
            found = [
                torch.empty(shape, dtype=dtype) if wanted else None
                for wanted, (shape, dtype) in zip(needed, ctx.shapes, strict=True)
            ]
        del held
        return None, None, None, None, None, *found


def signature(module: nn.Module) -> int:
    """Return what blocks that are alike have in common: the classes and settings inside, and the shapes of weights."""
    told: list[Any] = []
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, int | float | str) and k not in _NO_MATTER}
        told.append((name, type(part).__qualname__, tuple(sorted(plain.items(), key=lambda item: item[0]))))
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        told.append((name, tuple(value.shape), value.dtype))
    return hash(tuple(told))


_NO_MATTER = ("training", "layer_id", "layer_idx")  # of what a block takes
_checkpoint = torch.utils.checkpoint.checkpoint


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    return value if value is None or isinstance(value, int | float | str) else type(value)


def _like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _made(output: Tensor, places: dict[int, int]) -> Made:
    """Return which input an output is, or -1, and what it is like."""
    place = places.get(output.untyped_storage()._cdata, -1)
    return place, tuple(output.shape), output.stride(), output.dtype, output.grad_fn is not None


def _described(result: Any, places: dict[int, int]) -> tuple[tuple[Made, ...], Any]:
    """Return what the tensors of a result are like, and where they are in it beside its other values."""
    leaves, shape = tree_flatten(result)
    made = tuple(_made(leaf, places) for leaf in leaves if isinstance(leaf, Tensor))
    return made, ([None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves], shape)


def _assembled(toll: Toll, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
    """Return a result of new outputs, and of inputs that were handed through."""
    new = iter(outputs)
    found = iter([inputs[made[0]] if made[0] >= 0 else next(new) for made in toll.made])
    return tree_unflatten([next(found) if leaf is None else leaf[0] for leaf in toll.spec[0]], toll.spec[1])


def _make(made: Sequence[Made]) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_strided(shape, stride, dtype=dtype) for place, shape, stride, dtype, _ in made if place < 0
    )
