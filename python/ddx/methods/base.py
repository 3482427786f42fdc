"""The contract of a distillation method.

A method says which networks exist and in which turns they are updated; from a batch and the networks it returns the
loss of each network that a turn trains. The trainer does the rest: optimisers, averages, precision, accumulation,
clipping, parallelism, checkpoints. A method knows neither the trainer nor where the batch comes from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ddx.methods.draws import Draws
from ddx.networks.lora import shared_copy
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.condition import Condition

ConfigT = TypeVar("ConfigT")
STUDENT = "student"
FAKE = "fake_score"
TARGET = "target"


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network beside the frozen teacher.

    A network with `average_of` is an exponential average of that one, moved by `decay` after each of its updates;
    with a decay of 1 it is a snapshot, which moves only when the method renews it. Every other one is trained by an
    optimiser of its own, at the run's learning rate times `learning_rate_scale`; a copy of the teacher's network is
    trained in full or, when the run says so, by low-rank matrices (`lora`), what a method adds always in full.
    """

    name: str
    average_of: str | None = None
    decay: float = 0.0
    learning_rate_scale: float = 1.0
    lora: bool = True

    @property
    def trained(self) -> bool:
        """Whether an optimiser moves it."""
        return self.average_of is None


def student_and_target(decay: float) -> tuple[NetworkSpec, ...]:
    """Return the student and its average, the target; with decay 0 the student alone, which is then its own target."""
    student = NetworkSpec(name=STUDENT)
    return (student,) if decay == 0.0 else (student, NetworkSpec(name=TARGET, average_of=STUDENT, decay=decay))


def bare(network: nn.Module) -> nn.Module:
    """Return the network inside a data-parallel wrapper, or the network itself: for passes that train nothing."""
    inner = getattr(network, "module", network)
    assert isinstance(inner, nn.Module)
    return inner


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One update: the networks whose losses are computed together and whose optimisers then step."""

    trains: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows that a step sees: what the store holds, and the random numbers that belong to them.

    x0: scaled latents float32 `[B, C, h, w]` (a method that needs captions only reads nothing but its shape);
    null: the unguided condition, one row; progress: the share of the run that is done, in [0, 1); noise: the unit noise
    that the teacher drew x0 from, float32 like x0, for a method that reads pairs; neighbour: the x0 of the row before
    in the global batch, the first row's is the last one, for a method that reads neighbours.
    """

    x0: Tensor
    condition: Condition
    null: Condition
    draws: Draws
    step: int = 0
    progress: float = 0.0
    noise: Tensor | None = None
    neighbour: Tensor | None = None

    def __len__(self) -> int:
        return self.x0.shape[0]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of each row for every network that the turn trains, float32 `[B]`; and numbers worth tracking, `[B]`.

    secondary: by network, a further loss of each row, weighted, which the trainer adds to the first or balances with
    it. dropped: by network, bool `[B]`: rows whose loss was not finite and which the loss counts as 0, with no
    gradient.
    """

    by_network: Mapping[str, Tensor]
    secondary: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    tracked: Mapping[str, Tensor] = field(default_factory=dict)


class Method(ABC, Generic[ConfigT]):
    """One distillation method for one teacher."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the trainer that the method wants, below presets and what users give."""
    makes: ClassVar[str] = "student"
    """What run.json says that the exported folder is: a student, or a teacher."""

    sampler: ClassVar[Sampler] = "consistency"
    """How the exported student draws in several steps."""
    folded_steps: ClassVar[tuple[int, ...]] = ()
    """The step counts that get a folder each, of a student whose weights depend on it; none: one folder serves all."""

    def __init__(self, config: ConfigT, teacher: Teacher) -> None:
        self.config = config
        self.teacher = teacher
        self.shares_backbone = False  # whether copies of the teacher's network are trees around its own frozen weights
        self.train_steps = 0  # the steps of the run, as its trainer says: stages are shares of it

    @property
    def reads_pairs(self) -> bool:
        """Whether its batches must bring the noise that the teacher drew their latents from."""
        return False

    @property
    def reads_neighbours(self) -> bool:
        """Whether its batches must bring the latents of another row with each row: micro-batches may be of one row."""
        return False

    @abstractmethod
    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the networks; one is called "student"."""

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the updates of step `step` (from 0), in order. By default the student alone, at every step."""
        return (Turn(trains=(STUDENT,)),)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return the network of `spec`, trainable, float32: by default a copy of the teacher's."""
        return self.new_network()

    def new_network(self) -> nn.Module:
        """Return a copy of the teacher's network: of its own float32 weights, or around the shared frozen ones."""
        if self.shares_backbone:
            return shared_copy(self.teacher.network())
        return self.teacher.new_student_network(torch.float32)

    def renewed(self, step: int) -> tuple[str, ...]:
        """Return the averages that become equal to their source before step `step`: where a stage begins."""
        return ()

    def decay_at(self, spec: NetworkSpec, step: int) -> float:
        """Return the decay of an average at step `step`."""
        return spec.decay

    def stage_at(self, step: int, num_stages: int, length: int | None) -> int:
        """Return the stage, from 0, that training step `step` is in: of `length` steps each, None for equal shares of
        the run; the last one takes what is left.
        """
        return min(step // (length or max(self.train_steps // num_stages, 1)), num_stages - 1)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the settings that are shares of the run and still act behind `share` of it: more steps would move
        them.
        """
        return ()

    def state(self) -> dict[str, Tensor]:
        """Return what the method itself carries from step to step, live tensors: checkpoints keep and restore it."""
        return {}

    def end_step(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Count what the step has shown; `mean` averages a tensor over the ranks."""

    @abstractmethod
    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the losses of `turn.trains` on `batch`. `networks` maps every name of `networks()` to its module."""

    @abstractmethod
    def draw(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, *, guidance: float | None = None
    ) -> Tensor:
        """Return scaled latents `[B, C, h, w]` drawn in as many evaluations as there are unit noises `[B, C, h, w]`.

        The first is where drawing starts, the others are added on the way. `guidance` None: what the export uses.
        """

    @abstractmethod
    def plain_network(self, student: nn.Module, num_steps: int = 1) -> nn.Module:
        """Return the student as a network of the teacher's class, with everything that was added folded in.

        It may share storage with `student`, which must not be trained any further. `num_steps` matters to a method with
        :attr:`folded_steps` alone.
        """

    def export_notes(self) -> dict[str, Any]:
        """Return what a reader of the exported folder must know, such as the guidance that was folded in.

        "first_sigma" (flow) or "first_timestep" (VP) says where drawing starts, if not at the noisiest time.
        """
        return {}
