"""The contract of a distillation method.

A method defines its networks and the turns that update them. From a batch and the networks it returns the loss of each
network that a turn trains. The trainer does the rest: optimisers, averages, precision, accumulation, clipping,
parallelism, checkpoints. A method does not know the trainer or the source of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.networks.lora import shared_copy
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.condition import Condition

STUDENT = "student"
FAKE = "fake_score"
TARGET = "target"


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network beside the frozen teacher.

    A network with `average_of` is an exponential average of that network, updated with `decay` after each of its steps.
    With a decay of 1 it is a snapshot, which changes only when the method renews it.

    Every other network has its own optimiser, at the run's learning rate times `learning_rate_scale`. In a low-rank run
    a copy of the teacher's network trains low-rank matrices if `lora` is set. All else, and all that a method adds,
    trains in full.
    """

    name: str
    average_of: str | None = None
    decay: float = 0.0
    learning_rate_scale: float = 1.0
    lora: bool = True

    @property
    def trained(self) -> bool:
        """Whether an optimiser trains this network."""
        return self.average_of is None


def student_and_target(decay: float) -> tuple[NetworkSpec, ...]:
    """Return the student and its average, the target. With decay 0 the student alone, which is its own target."""
    student = NetworkSpec(name=STUDENT)
    return (student,) if decay == 0.0 else (student, NetworkSpec(name=TARGET, average_of=STUDENT, decay=decay))


def bare(network: nn.Module) -> nn.Module:
    """Return the network without its data-parallel wrapper, if any; use it for passes without training."""
    inner = getattr(network, "module", network)
    assert isinstance(inner, nn.Module)
    return inner


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One update: the losses of these networks are computed together, then their optimisers step."""

    trains: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one step, from the store, and their random numbers.

    x0: scaled latents, float32 `[B, C, h, w]`; a method that needs only captions reads only the shape.
    condition: the captions' embeddings. null: the unguided condition, one row.
    random: the random numbers of the rows. progress: the finished share of the run, in [0, 1).
    noise: the unit noise from which the teacher drew x0, float32 like x0; only for methods with `reads_pairs`.
    neighbour: the x0 of the previous row of the global batch, the last row's for the first; only for methods with
    `reads_neighbours`. captions: the words behind the condition; only for methods with `reads_captions`.
    """

    x0: Tensor
    condition: Condition
    null: Condition
    random: RandomNumbers
    step: int = 0
    progress: float = 0.0
    noise: Tensor | None = None
    neighbour: Tensor | None = None
    captions: Sequence[str] | None = None

    def __len__(self) -> int:
        return self.x0.shape[0]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of a batch, by network.

    by_network: the loss of each row, float32 `[B]`, for every network that the turn trains.
    secondary: a second, weighted loss of each row. The trainer adds it to the first or balances the two.
    dropped: bool `[B]`, the rows with a loss that is not finite; they count as 0 and have no gradient.
    tracked: further numbers for the metrics, `[B]`.
    generated: the clean latents that the student drew, `[B, C, h, w]`, through their gradient; of methods whose loss
    looks at what the student itself draws, in the student's turn.
    """

    by_network: Mapping[str, Tensor]
    secondary: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    tracked: Mapping[str, Tensor] = field(default_factory=dict)
    generated: Tensor | None = None

    def detached(self) -> Losses:
        """Return their values alone, without what was generated."""
        return Losses(
            by_network=_detached(self.by_network),
            secondary=_detached(self.secondary),
            dropped=_detached(self.dropped),
            tracked=_detached(self.tracked),
        )


def _detached(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows.detach() for name, rows in named.items()}


class Method(ABC):
    """One distillation method for one teacher."""

    config: Any
    """Its settings; a method's class names theirs."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the trainer that the method prefers; presets and users override them."""
    makes: str = "student"
    """The kind of the exported folder in run.json: a student or a teacher."""

    sampler: Sampler = "consistency"
    """How the exported student draws in several steps."""
    folded_steps: tuple[int, ...] = ()
    """Step counts with a folder of their own, if the weights depend on the count; empty: one folder serves all."""

    full_precision: bool = False
    """Whether the loss is a small difference of two passes, which half precision rounds away. The trainer then computes
    it in float32 in every run; the teacher's own network keeps the run's dtype.
    """

    def __init__(self, config: Any, teacher: Teacher) -> None:
        self.config = config
        self.teacher = teacher
        self.shares_backbone = False  # whether copies of the teacher's network share its frozen weights
        self.passes_together = False  # whether every rank must make the same passes: weights are gathered in them
        self.train_steps = 0  # steps of the run, set by the trainer; stages are shares of it

    @property
    def reads_pairs(self) -> bool:
        """Whether batches must contain the noise from which the teacher drew their latents."""
        return False

    @property
    def reads_neighbours(self) -> bool:
        """Whether batches must contain the latents of another row for each row; a micro-batch may have one row."""
        return False

    @property
    def reads_captions(self) -> bool:
        """Whether batches must contain the captions in words."""
        return False

    def onlookers(self) -> Mapping[str, nn.Module]:
        """Return the frozen networks that a loss looks through beside the teacher's, by name."""
        return {}

    @abstractmethod
    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the networks beside the teacher. One is called "student"."""

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the updates of step `step` (from 0), in order. Default: the student alone, at every step."""
        return (Turn(trains=(STUDENT,)),)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return the network of `spec`, trainable, float32. Default: a copy of the teacher's network."""
        return self.new_network()

    def new_network(self) -> nn.Module:
        """Return a copy of the teacher's network, with its own float32 weights or with the shared frozen ones."""
        if self.shares_backbone:
            return shared_copy(self.teacher.network())
        return self.teacher.new_student_network(torch.float32)

    def renewed(self, step: int) -> tuple[str, ...]:
        """Return the averages to copy from their source before step `step`, at the start of a stage."""
        return ()

    def learning_rate_factor(self, step: int) -> float:
        """Return the method's own factor for all learning rates at step `step`, over the run's schedule."""
        return 1.0

    def host_numbers(self, step: int, progress: float) -> Hashable | None:
        """Return all that the losses take from the step on the host: equal ones run equal operations on the device.

        Then a CUDA graph of one step serves another. None, the default, says that nobody has looked, or that the losses
        decide something by their rows on the host; no graph is recorded then.
        """
        return None

    def decay_at(self, spec: NetworkSpec, step: int) -> float:
        """Return the decay of an average at step `step`."""
        return spec.decay

    def stage_at(self, step: int, num_stages: int, length: int | None) -> int:
        """Return the stage (from 0) of training step `step`.

        A stage has `length` steps; None makes all stages equal. The last stage takes the remaining steps.
        """
        return min(step // (length or max(self.train_steps // num_stages, 1)), num_stages - 1)

    def rows_to_pass(self, part: Tensor) -> Tensor:
        """Return the rows, int64, that go through a network for a part of the batch.

        They are the part's own. Where every rank must make the same passes, the first row stands in for a part that is
        empty here; what comes of it is dropped, by ``[: len(part)]``.
        """
        return part.new_zeros(1) if self.passes_together and not len(part) else part

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the settings that are shares of the run and still act behind `share` of it: more steps would move
        them.
        """
        return ()

    def state(self) -> dict[str, Tensor]:
        """Return the method's own state as live tensors; checkpoints save and restore it."""
        return {}

    def end_step(self, mean: Callable[[Tensor], Tensor]) -> None:  # noqa: B027  most methods have no state
        """Update the method's state after a step; `mean` averages a tensor over the ranks."""

    @abstractmethod
    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the losses of `turn.trains` on `batch`. `networks` maps every name of `networks()` to its module."""

    @abstractmethod
    def draw(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, *, guidance: float | None = None
    ) -> Tensor:
        """Return scaled latents `[B, C, h, w]`, drawn with one evaluation per unit noise `[B, C, h, w]`.

        The first noise is the start; the others are added on the way. `guidance` None: the guidance of the export.
        """

    @abstractmethod
    def plain_network(self, student: nn.Module, num_steps: int = 1) -> nn.Module:
        """Return the student as a network of the teacher's class, with all additions folded in.

        The result may share storage with `student`; do not train `student` afterwards. `num_steps` matters only for
        methods with :attr:`folded_steps`.
        """

    def export_notes(self) -> dict[str, Any]:
        """Return facts about the export that its readers need, such as the folded guidance.

        "first_sigma" (flow) or "first_timestep" (VP) is the start of drawing, if that is not the noisiest time.
        """
        return {}
