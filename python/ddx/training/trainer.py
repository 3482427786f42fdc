"""The networks of a run, their averages, and one step of all of them.

Weights, gradients, optimiser state and, unless the run says otherwise, averages are float32; with bf16 and fp16 the
forward passes run under autocast, but for the losses of methods with `full_precision`. With fp16 the losses are scaled,
so that small gradients do not vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ddx.checkpoints.folder import Saved, Snapshot
from ddx.kernels.cpu_bfloat16 import wide_products
from ddx.methods.base import STUDENT, Batch, Losses, Method, NetworkSpec, Turn
from ddx.methods.parts.random_numbers import mix
from ddx.networks.lora import add_lora
from ddx.training.checkpointing import some_again
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks, without_sync
from ddx.training.ema import EMA, Swapped, Weights, average_in_place
from ddx.training.faster import compile_blocks, recomputation, why_not_compiled
from ddx.training.graphs import make_graphs
from ddx.training.meter import Meter
from ddx.training.optimizer import (
    Clip,
    guarded_step,
    measure_clip,
    set_learning_rate,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
)
from ddx.training.quantised_base import quantise_teacher
from ddx.training.sharding import Sharding, rest
from ddx.training.spread_networks import SpreadNetworks
from ddx.training.spread_tensors import gathered
from ddx.training.starting_weights import Start, start_from
from ddx.training.streamed import stream_teacher
from ddx.training.trained import Trained
from ddx.training.trainer_state import TrainerState

EXPORTED = "ema"
FIRST_LOSS_SCALE = 4096.0  # of fp16; torch halves it after a step that is not finite, and doubles it after 2000 others


class Trainer:
    """The state that changes from step to step, except the position in the data."""

    def __init__(
        self,
        method: Method,
        config: DistillConfig,
        ranks: Ranks,
        dtype: torch.dtype,
        start: Mapping[str, Start] = MappingProxyType({}),
        say: Callable[[str], None] = lambda text: None,
        sharding: Sharding | None = None,
    ) -> None:
        self.method, self.config, self.ranks, self.dtype = method, config, ranks, dtype
        method.train_steps = config.train_steps
        method.passes_together = sharding is not None
        if config.base_bits is not None:
            quantise_teacher(method.teacher, config.base_bits)
        if "frozen" in config.offload:
            stream_teacher(method.teacher)
        self.specs = {spec.name: spec for spec in method.networks()}
        self.trained: dict[str, Trained] = {}
        self.averages: dict[str, tuple[nn.Module, EMA]] = {}
        self.spread: SpreadNetworks | None = None
        if sharding is not None:
            self.spread = SpreadNetworks(sharding, method.teacher, low_rank=bool(config.lora_rank), say=say)
        for spec, module in self._networks_in_order(start):
            if spec.trained:
                if config.gradient_checkpointing and hasattr(module, "enable_gradient_checkpointing"):
                    getattr(module, "enable_gradient_checkpointing")(self._again(module))  # noqa: B009 diffusers' own
                self.trained[spec.name] = Trained(spec, module, config, ranks)
            else:
                assert spec.average_of is not None
                source = self.trained[spec.average_of].module
                self.averages[spec.name] = (module, average_in_place(module, source, spec.decay))
        student = self.trained[STUDENT].module
        self.exported: EMA | None = None
        kept: dict[str, Any] = {
            "dtype": torch.bfloat16 if config.average_dtype == "bf16" else torch.float32,
            "on_host": "averages" in config.offload,
            "seed": config.seed,
        }
        if config.ema_half_life > 0.0:
            self.exported = EMA(student, half_life_images=config.ema_half_life, ramp_up=config.ema_ramp_up, **kept)
        self.more = {name: EMA.named(student, name, **kept) for name in config.ema_more}
        self._teacher_again = self._again(method.teacher.network())
        if config.compile and why_not_compiled(method, ranks.device, spread=sharding is not None) is None:
            compile_blocks(method, (method.teacher.network(), *self._modules().values()))
        self.graphs = make_graphs(config, method, ranks, say)
        self.skipped = torch.zeros((), device=ranks.device)
        self.meter = Meter(ranks.device)
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, init_scale=FIRST_LOSS_SCALE, enabled=dtype == torch.float16
        )

    def _networks_in_order(self, start: Mapping[str, Start]) -> Iterator[tuple[NetworkSpec, nn.Module]]:
        def build(spec: NetworkSpec) -> nn.Module:
            torch.manual_seed(self.config.seed)  # what a method adds to a network starts equal on every rank
            return self._build(spec, start)

        specs = list(self.specs.values())
        return ((spec, build(spec)) for spec in specs) if self.spread is None else self.spread.build(specs, build)

    def _build(self, spec: NetworkSpec, start: Mapping[str, Start]) -> nn.Module:
        """Return the network of `spec`: whole, or low-rank matrices around the shared frozen backbone."""
        rank = self.config.lora_rank
        self.method.shares_backbone = bool(rank)
        module = self.method.build(spec)
        if spec.name in start:
            start_from(module, start[spec.name])
        if rank and spec.lora:
            alpha = float(rank) if self.config.lora_alpha is None else self.config.lora_alpha
            module = add_lora(module, self.method.teacher.lora_targets, rank=rank, alpha=alpha)
        return module

    @property
    def student(self) -> nn.Module:
        """The student with its training weights, not their average."""
        return self.trained[STUDENT].module

    def learning_rate_factor(self, step: int) -> float:
        """Return the factor for all learning rates at `step`: the schedule's and the method's."""
        config, own = self.config, self.method.learning_rate_factor(step)
        match config.lr_schedule:
            case "cosine":
                return own * warmup_cosine(step, warmup_steps=config.warmup_steps, total_steps=config.train_steps)
            case "linear":
                return own * warmup_linear(step, warmup_steps=config.warmup_steps, total_steps=config.train_steps)
        return own * warmup_constant(step, warmup_steps=config.warmup_steps)

    def step(self, step: int, batches: Sequence[Batch]) -> None:
        """Run all turns of `step` on this rank's rows, given as micro-batches."""
        # dropout is the only random draw per process, not per row: the seed makes it the same after a restore
        torch.manual_seed(mix(self.config.seed, step, self.ranks.rank))
        factor = self.learning_rate_factor(step)
        for name in self.method.renewed(step):
            self.averages[name][1].renew()
        for name, (_, moving) in self.averages.items():
            moving.decay = self.method.decay_at(self.specs[name], step)
        waiting = [average for average in (self.exported, *self.more.values()) if average is not None]
        turns = self.method.turns(step)
        last = max((number for number, turn in enumerate(turns) if STUDENT in turn.trains), default=None)
        for number, turn in enumerate(turns):
            self._accumulate(turn, batches)
            for name in turn.trains:
                moved = [average for key, (_, average) in self.averages.items() if self.specs[key].average_of == name]
                if name == STUDENT and number == last:  # once a step, with its last update
                    moved, waiting = [*moved, *waiting], []
                self._update(self.trained[name], factor, moved)
            self.scaler.update()
        for average in waiting:
            average.update(self.config.batch_size)
        self.method.end_step(self.ranks.mean)

    def _modules(self) -> dict[str, nn.Module]:
        averages = {name: module for name, (module, _) in self.averages.items()}
        return averages | {name: trained.module for name, trained in self.trained.items()}

    def _accumulate(self, turn: Turn, batches: Sequence[Batch]) -> None:
        """Add the gradients of all micro-batches. Ranks exchange them once, with the last micro-batch."""
        networks = self._modules()
        for name, trained in self.trained.items():
            active = name in turn.trains
            trained.activate(active)
            if active:  # a network that is only looked through needs no gradient exchange
                networks[name] = trained.replica
        num_rows = sum(len(batch) for batch in batches)
        for number, batch in enumerate(batches):
            accumulate_only = number < len(batches) - 1

            def passes(batch: Batch, accumulate_only: bool = accumulate_only) -> Losses:
                return self._passes(turn, batch, networks, num_rows, accumulate_only)

            if self.graphs is None:
                losses = passes(batch)
            else:
                numbers = self.method.host_numbers(batch.step, batch.progress)
                losses = self.graphs.run((turn, numbers, num_rows), batch, passes)
            self.meter.add(losses)
            for name in turn.trains:
                self.trained[name].lost.add(losses.dropped.get(name))

    def _passes(
        self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module], num_rows: int, accumulate_only: bool
    ) -> Losses:
        """Add the gradients of a micro-batch, and return its losses, detached."""
        with ExitStack() as stack:
            stack.enter_context(wide_products(self.ranks.device, self.dtype))
            stack.enter_context(self._teacher_checkpointing(turn))
            for name in turn.trains:
                stack.enter_context(without_sync(networks[name], accumulate_only))
            with nullcontext() if self.method.full_precision else self.autocast():
                losses = self.method.losses(turn, batch, networks)
            self._backward(turn, losses, num_rows)
        if self.spread is not None:
            rest((self.method.teacher.network(), *self._modules().values()))
        return losses.detached()

    @contextmanager
    def _teacher_checkpointing(self, turn: Turn) -> Iterator[None]:
        """Recompute the teacher's activations too where the student's gradient flows through it.

        In the other turns a penalty differentiates it twice, and then the second pass must find what the first has.
        """
        network: Any = self.method.teacher.network()
        wanted = self.config.gradient_checkpointing and STUDENT in turn.trains
        if not wanted or not hasattr(network, "enable_gradient_checkpointing"):
            yield
            return
        network.enable_gradient_checkpointing(self._teacher_again)
        try:
            yield
        finally:
            network.disable_gradient_checkpointing()

    def _again(self, network: nn.Module) -> Callable[..., Any] | None:
        """Return how blocks of a network are computed again in the backward pass; None is diffusers' own way."""
        config, again = self.config, recomputation(network)
        return some_again(again, config.checkpointed_share, on_host="activations" in config.offload)

    def _backward(self, turn: Turn, losses: Losses, num_rows: int) -> None:
        """Add the gradients of a micro-batch; a balanced second loss adds its own separately, see `LossBalance`."""
        together, apart, balances = [], [], []
        for name in turn.trains:
            together.append(losses.by_network[name].sum() / num_rows)
            if name in losses.secondary:
                second, balance = losses.secondary[name].sum() / num_rows, self.trained[name].balance
                if balance.separates:
                    apart.append(second)
                    balances.append(balance)
                else:
                    together.append(second)
        self.scaler.scale(torch.stack(together).sum()).backward(retain_graph=bool(apart))
        if apart:
            with ExitStack() as stack:
                for balance in balances:
                    stack.enter_context(balance.second())
                self.scaler.scale(torch.stack(apart).sum()).backward()

    def _update(self, trained: Trained, factor: float, averages: Sequence[EMA] = ()) -> None:
        """Take the optimiser's step, with which these averages of the network move."""
        trained.balance.finish()
        self.scaler.unscale_(trained.optimizer)
        clip = measure_clip((p.grad for p in trained.parameters), self.config.clip_norm)
        set_learning_rate(trained.optimizer, trained.learning_rate, factor)
        self._take(trained, clip, averages)
        trained.lost.end_step(clip.found_inf)
        trained.optimizer.zero_grad(set_to_none=self.graphs is None)  # graphs add to gradients where they are
        trained.num_steps += 1
        self.meter.add_norm(trained.spec.name, clip.norm)

    def _take(self, trained: Trained, clip: Clip, averages: Sequence[EMA]) -> None:
        """Take the optimiser's step, unless the gradients are not finite, and move the averages."""
        guarded_step(trained.optimizer, clip, self.skipped, averages, self.config.batch_size)

    def lost_in_a_row(self) -> int:
        """Return the largest number of consecutive lost steps of a network, the same on every rank. It synchronises."""
        counts = torch.stack([trained.lost.in_a_row for trained in self.trained.values()])
        return int(self.ranks.smallest(counts).max())

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes in the run's dtype."""
        if self.dtype == torch.float32:
            return nullcontext()
        # cached copies of weights in half precision would be whole networks
        return torch.autocast(self.ranks.device.type, dtype=self.dtype, cache_enabled=self.spread is None)

    def exported_student(self) -> Swapped:
        """Return a context that yields the student with the weights of the export."""
        return Swapped(self.student, self.exported)

    @contextmanager
    def whole_student(self, average: EMA | Weights | None = None) -> Iterator[nn.Module | None]:
        """Yield the student with whole weights, those of the average if one is given; on ranks but the first None.

        Every rank must come here. Of a run that shards it is in the first rank's memory, for the time of this context
        with all networks that are opened in it.
        """
        if self.spread is not None:
            with self.method.teacher.on_host():
                yield self.spread.whole_student(self.student, self.ranks, average)
        elif self.ranks.is_first:
            with Swapped(self.student, average) as student:
                yield student
        else:
            yield None

    def exported_tensors(self) -> dict[str, Tensor]:
        """Return the trained parameters of the student with the weights of the export, by name; the live ones.

        Of a run that shards copies on the first rank's host, and none on the others; every rank must ask.
        """
        live: dict[str, Tensor] = dict(self.trained[STUDENT].named)
        tensors = live if self.exported is None else self.exported.parameters()
        return tensors if self.spread is None else gathered(tensors, self.ranks)

    def final_student(self) -> nn.Module:
        """Return the student with the weights of the export, for good. All other state is released."""
        student, self.graphs = self.student, None
        student.zero_grad(set_to_none=True)
        for trained in self.trained.values():
            trained.optimizer.state.clear()
        self.averages.clear()
        if self.exported is not None:
            self.exported.copy_to(student)
            self.exported = None
        return student.eval()

    def snapshot(self) -> Snapshot:
        """Return all tensors and counters; the tensors are live, not copies."""
        return self._state().snapshot()

    def restore(self, snapshot: Saved) -> None:
        """Continue from a snapshot or a checkpoint. DdxError if it belongs to other networks."""
        self._state().restore(snapshot)

    def _state(self) -> TrainerState:
        return TrainerState(
            trained=self.trained,
            averages=self.all_averages(),
            method=self.method,
            skipped=self.skipped,
            scaler=self.scaler,
        )

    def all_averages(self) -> dict[str, EMA]:
        """Return every average of the run, by the name that a checkpoint has for it."""
        found = {name: average for name, (_, average) in self.averages.items()}
        found |= {f"{EXPORTED}-{name.replace(':', '-')}": average for name, average in self.more.items()}
        return found if self.exported is None else {**found, EXPORTED: self.exported}
