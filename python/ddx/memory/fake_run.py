"""A distillation's steps on tensors without data: the run's own code and the real architecture, and no weights.

Fake tensors (torch's, on a fake processor) have shapes and storages of the right size and nothing in them. The trainer
runs on them as it does on a GPU: bfloat16 with CUDA's casts, the fused operations, checkpointing, every turn of the
method. What is alive is counted by a `Ledger`.

Not in it: the device's context and the workspaces of its libraries, see `ddx.memory.plan.ALLOWANCE`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ddx.memory.dual_forward import counted_twice
from ddx.memory.ledger import BLOCK, Ledger, Peak, Use
from ddx.memory.looks import draws, peak_of_looks
from ddx.memory.no_values import lengths, no_values
from ddx.memory.optimizer_steps import step_without_values
from ddx.memory.repeats import CannotRepeatError, RepeatedBlocks, Repeats
from ddx.methods.base import Batch, Method
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.registry import load_method
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.samplers.names import OWN
from ddx.training import host_memory
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.ema import EMA
from ddx.training.one_pass import OnePass
from ddx.training.optimizer import Clip
from ddx.training.trained import Trained
from ddx.training.trainer import Trainer
from ddx.watch.validation import rows_at_once

TEACHER, DATA = "teacher", "data"
WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES = "weights", "gradients", "optimiser", "averages"
ACTIVATIONS, BACKWARD, TEMPORARIES = "activations", "backward pass", "temporaries"


@dataclass(frozen=True)
class Made:
    """The networks of a step, and the names of those that are trained."""

    networks: Mapping[str, nn.Module]
    trained: Collection[str]


@dataclass(frozen=True)
class TurnBegins:
    """The networks that a turn trains, and how many times a step takes such a turn."""

    trains: tuple[str, ...]
    times: int


@dataclass(frozen=True)
class Pass:
    """A network is gone through."""

    owner: str
    backward: bool


@dataclass(frozen=True)
class Footprint:
    """The peak of a step, the parameters of the denoiser, and the bytes that live in the host's memory.

    looks: the peak between two steps, while pictures are drawn; None where none are, or where it was not counted.
    """

    peak: Peak
    num_parameters: int
    host_bytes: int = 0
    looks: Peak | None = None

    @property
    def num_bytes(self) -> int:
        """The most that the run takes."""
        return max(self.peak.num_bytes, 0 if self.looks is None else self.looks.num_bytes)


def footprint(
    config: DistillConfig,
    method_config: Any,
    discriminator: AddedDiscriminatorConfig | None,
    teacher: Teacher,
    *,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    fused: bool = True,
    block: int = BLOCK,
    limit: float = math.inf,
    repeats: Repeats | None = None,
    make_ledger: Callable[..., Ledger] = Ledger,
    looks: bool = True,
    decoder: int | None = None,
) -> Footprint:
    """Return the peak of a whole step with `rows` rows in a micro-batch: in the last of them, if there are several.

    teacher: opened on the CPU, none of its components loaded. tokens: the length of the captions. Where the weights,
    averages and moments alone are above `limit` bytes, no step is taken, and the peak is theirs. repeats: what is known
    of blocks that are alike, by earlier counts too; None runs them all. make_ledger: what counts; it is made anew where
    repeats do not serve. looks: whether the run's looks and grids are counted too. decoder: bytes that decoding takes
    in them, None to count the whole decoder.
    """
    more: Any = {"limit": limit, "looks": looks, "decoder": decoder}
    ledger = make_ledger(block=block)
    try:
        return _count(
            config, method_config, discriminator, teacher, dtype, rows, tokens, fused, ledger, repeats, **more
        )
    except CannotRepeatError:
        teacher.unload("denoiser")
        ledger = make_ledger(block=block)
        return _count(config, method_config, discriminator, teacher, dtype, rows, tokens, fused, ledger, None, **more)


def _count(
    config: DistillConfig,
    method_config: Any,
    discriminator: AddedDiscriminatorConfig | None,
    teacher: Teacher,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    fused: bool,
    ledger: Ledger,
    repeats: Repeats | None,
    *,
    limit: float,
    looks: bool,
    decoder: int | None,
) -> Footprint:
    if getattr(method_config, "sampler", OWN) != OWN:  # another rule asks values; its passes take as much
        method_config = dataclasses.replace(method_config, sampler=OWN)
    method = load_method(config.method, method_config, teacher, discriminator)  # reads its process's tables
    with ExitStack() as stack:
        stack.enter_context(no_values(fused=fused))
        stack.enter_context(lengths(tokens))
        stack.enter_context(ledger)
        stack.enter_context(mock.patch.object(host_memory, "allocate", _counted_at_home(ledger)))
        null = _text(teacher, 1, tokens)  # as long as the captions, as batches pad it
        stack.enter_context(mock.patch.object(teacher, "null_condition", lambda: null))
        with ledger.using(Use(TEACHER, WEIGHTS)):
            network = teacher.network()
        num_parameters = sum(value.numel() for value in network.parameters())
        trainer = _FakeTrainer(method, config, dtype, ledger)
        if repeats is not None and config.loss_balance == "none":  # whose two backward passes go through each block
            stack.enter_context(trainer.repeating(repeats))
        trainer.make_moments()
        if ledger.now > limit:
            return Footprint(ledger.peak, num_parameters, ledger.host_peak)
        ledger.told(Made(trainer._networks(), trainer.trained))
        ledger.use = Use("", TEMPORARIES)
        with ledger.using(Use(DATA, ACTIVATIONS)):
            batch = _batch(teacher, method, config, rows, tokens)
        in_full = nullcontext if trainer.blocks is None else trainer.blocks.in_full
        stack.enter_context(mock.patch.object(Teacher, "predict_dual", counted_twice(ledger, in_full)))
        trainer.accumulates = config.batch_size > rows
        trainer.step(config.train_steps - 1, [batch])  # in the last stage of a method that has stages
        peak = ledger.peak
        if looks and draws(config, method):
            at_once = _text(teacher, rows_at_once(config.micro_batch_size), tokens)
            seen = peak_of_looks(trainer, ledger, at_once, null, decoder)
            return Footprint(peak, num_parameters, ledger.host_peak, seen)
    return Footprint(peak, num_parameters, ledger.host_peak)


class _FakeTrainer(Trainer):
    """The trainer, that tells a ledger what its tensors are for and that steps where no value can be asked for."""

    def __init__(self, method: Method, config: DistillConfig, dtype: torch.dtype, ledger: Ledger) -> None:
        self.ledger, self.kind = ledger, config.optimizer
        self.blocks: RepeatedBlocks | None = None
        self.accumulates = False  # whether a micro-batch finds the gradients of those before it
        stand_in = "adamw" if config.optimizer == "adamw" else "radam"  # whose package need not be here
        with ledger.using(Use("student", WEIGHTS)):
            plain = dataclasses.replace(config, optimizer=stand_in, compile=False, cuda_graphs=False)
            super().__init__(method, plain, Ranks(), dtype)
        for name, trained in self.trained.items():
            ledger.mark(trained.module.parameters(), Use(name, WEIGHTS))
            for parameter in trained.parameters:
                parameter.register_post_accumulate_grad_hook(_marks_gradient(ledger, Use(name, GRADIENTS)))
        for name, average in self.all_averages().items():
            ledger.mark(average.parameters().values(), Use(name, AVERAGES))
        for name, module in {TEACHER: method.teacher.network(), **method.onlookers()}.items():
            ledger.mark(module.parameters(), Use(name, WEIGHTS))

    @contextmanager
    def repeating(self, repeats: Repeats) -> Iterator[None]:
        """Within, blocks of its networks that are alike are counted once."""
        self.blocks = RepeatedBlocks(self.ledger, repeats, GRADIENTS)
        for name, module in self._networks().items():
            self.blocks.replace(module, name)
        with self.blocks.within():
            yield

    @contextmanager
    def autocast(self) -> Iterator[Any]:
        """See :meth:`Trainer.autocast`; its copies of weights go when it is left."""
        with super().autocast():
            yield
        if self.blocks is not None:
            self.blocks.forget_casts()

    def make_moments(self) -> None:
        """Give every optimiser the state that it has after its first step."""
        none = torch.zeros(())
        for trained in self.trained.values():
            self._give_gradients(trained)
            self._take(trained, Clip(none, none, none), ())
            trained.optimizer.zero_grad(set_to_none=True)
        self.ledger.forget_peak()

    def _give_gradients(self, trained: Trained) -> None:
        with self.ledger.using(Use(trained.spec.name, GRADIENTS)):
            for parameter in trained.parameters:
                parameter.grad = torch.empty_like(parameter)

    def _build(self, spec: Any, start: Any) -> nn.Module:
        with self.ledger.using(Use(spec.name, WEIGHTS)):
            return super()._build(spec, start)

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """Each kind of turn once: a second update of the fake score takes what the first one took."""
        self.times = Counter(self.method.turns(step))
        turns = tuple(self.times)
        with mock.patch.object(self.method, "turns", lambda _: turns):
            super().step(step, batches)

    def _accumulate(self, turn: Any, batches: Any) -> None:
        self.ledger.told(TurnBegins(turn.trains, self.times[turn]))
        for name in turn.trains if self.accumulates else ():
            self._give_gradients(self.trained[name])
        with ExitStack() as stack:
            for name, module in self._networks().items():
                stack.enter_context(_forwards_counted(self.ledger, module, Use(name, ACTIVATIONS)))
            super()._accumulate(turn, batches)

    def _networks(self) -> dict[str, nn.Module]:
        found = {name: trained.module for name, trained in self.trained.items()}
        found |= {name: module for name, (module, _) in self.averages.items()}
        return {TEACHER: self.method.teacher.network(), **self.method.onlookers(), **found}

    def _backward(self, turn: Any, losses: Any, num_rows: int) -> None:
        with self.ledger.using(Use("+".join(turn.trains), BACKWARD)):
            super()._backward(turn, losses, num_rows)

    def _take(self, trained: Trained, clip: Clip, averages: Sequence[EMA]) -> None:
        """Step without asking whether the gradients are finite; the moments are the first step's to make."""
        with self.ledger.using(Use(trained.spec.name, OPTIMIZER)):
            step_without_values(trained.optimizer, self.kind)
            for average in averages:
                if not (average.is_beside and isinstance(trained.optimizer, OnePass)):  # in whose pass it moves
                    average.update(self.config.batch_size)
        self.ledger.mark(trained.optimizer_tensors().values(), Use(trained.spec.name, OPTIMIZER))


def _counted_at_home(ledger: Ledger) -> Callable[..., Tensor]:
    def allocate(shape: torch.Size, dtype: torch.dtype, _: bool) -> Tensor:
        with ledger.on_host():
            return torch.empty(shape, dtype=dtype)

    return allocate


class _Numbers(RandomNumbers):
    """Random numbers that have no values: parts of a batch are as large as their shares, rounded."""

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(len(self), *shape)

    def _uniform(self) -> Tensor:
        return torch.empty(len(self), dtype=torch.float64)

    def pick(self, *shares: float) -> tuple[Tensor, ...]:
        edges = [0, *(round(sum(shares[: k + 1]) * len(self)) for k in range(len(shares))), len(self)]
        rows = torch.arange(len(self))
        return tuple(rows[a:b] for a, b in itertools.pairwise(edges))


def _batch(teacher: Teacher, method: Method, config: DistillConfig, rows: int, tokens: int) -> Batch:
    x0 = torch.empty(rows, *teacher.latent_shape(config.resolution))
    return Batch(
        x0=x0,
        condition=_text(teacher, rows, tokens),
        null=teacher.null_condition(),
        random=_Numbers(0, 0, range(rows)),
        step=config.train_steps - 1,
        progress=1.0 - 1.0 / config.train_steps,
        noise=torch.empty_like(x0) if method.reads_pairs else None,
        neighbour=torch.empty_like(x0) if method.reads_neighbours else None,
        captions=("",) * rows if method.reads_captions else None,
    )


def _text(teacher: Teacher, rows: int, tokens: int) -> Condition:
    pooled = teacher.pooled_width
    return Condition(
        torch.empty(rows, tokens, teacher.text_width),
        torch.ones(rows, tokens, dtype=torch.bool),
        None if pooled is None else torch.empty(rows, pooled),
        counts=(tokens,) * rows,
    )


@contextmanager
def _forwards_counted(ledger: Ledger, module: nn.Module, use: Use) -> Iterator[None]:
    """Within, what a forward pass of `module` makes is for `use`."""
    before: list[Use] = []

    def enters(*_: Any) -> None:
        before.append(ledger.use)
        ledger.use = use
        ledger.told(Pass(use.owner, backward=False))

    def leaves(_: nn.Module, __: Any, found: Any) -> None:
        ledger.use = before.pop()
        made = next((value for value in tree_leaves(found) if isinstance(value, Tensor) and value.requires_grad), None)
        if made is not None:
            made.register_hook(lambda _: ledger.told(Pass(use.owner, backward=True)))

    handles = module.register_forward_pre_hook(enters), module.register_forward_hook(leaves, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _marks_gradient(ledger: Ledger, use: Use) -> Callable[[Tensor], None]:
    def mark(parameter: Tensor) -> None:
        if parameter.grad is not None:
            ledger.enter(parameter.grad, use)

    return mark
