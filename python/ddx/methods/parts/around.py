"""A method with something added: all that the addition does not change is asked of the method inside."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ddx.methods.base import Batch, Losses, Method, NetworkSpec, Turn
from ddx.teachers.condition import Condition


class Around(Method):
    """`method`, as it is; a subclass overrides what it adds to."""

    def __init__(self, method: Method) -> None:
        self.method = method
        super().__init__(method.config, method.teacher)
        self.makes, self.sampler, self.folded_steps = method.makes, method.sampler, method.folded_steps
        self.full_precision = method.full_precision

    def networks(self) -> tuple[NetworkSpec, ...]:
        """See :meth:`Method.networks`."""
        return self.method.networks()

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.method.build(spec)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """See :meth:`Method.turns`."""
        return self.method.turns(step)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """See :meth:`Method.losses`."""
        return self.method.losses(turn, batch, networks)

    @property
    def shares_backbone(self) -> bool:
        """See :class:`Method`."""
        return self.method.shares_backbone

    @shares_backbone.setter
    def shares_backbone(self, shared: bool) -> None:
        self.method.shares_backbone = shared

    @property
    def passes_together(self) -> bool:
        """See :class:`Method`."""
        return self.method.passes_together

    @passes_together.setter
    def passes_together(self, together: bool) -> None:
        self.method.passes_together = together

    @property
    def train_steps(self) -> int:
        """See :class:`Method`."""
        return self.method.train_steps

    @train_steps.setter
    def train_steps(self, steps: int) -> None:
        self.method.train_steps = steps

    @property
    def reads_pairs(self) -> bool:
        """See :meth:`Method.reads_pairs`."""
        return self.method.reads_pairs

    @property
    def reads_neighbours(self) -> bool:
        """See :meth:`Method.reads_neighbours`."""
        return self.method.reads_neighbours

    @property
    def reads_captions(self) -> bool:
        """See :meth:`Method.reads_captions`."""
        return self.method.reads_captions

    def onlookers(self) -> Mapping[str, nn.Module]:
        """See :meth:`Method.onlookers`."""
        return self.method.onlookers()

    def renewed(self, step: int) -> tuple[str, ...]:
        """See :meth:`Method.renewed`."""
        return self.method.renewed(step)

    def learning_rate_factor(self, step: int) -> float:
        """See :meth:`Method.learning_rate_factor`."""
        return self.method.learning_rate_factor(step)

    def host_numbers(self, step: int, progress: float) -> Hashable | None:
        """See :meth:`Method.host_numbers`; None: nobody has looked at what is added."""
        return None

    def decay_at(self, spec: NetworkSpec, step: int) -> float:
        """See :meth:`Method.decay_at`."""
        return self.method.decay_at(spec, step)

    def stretched(self, share: float) -> tuple[str, ...]:
        """See :meth:`Method.stretched`."""
        return self.method.stretched(share)

    def state(self) -> dict[str, Tensor]:
        """See :meth:`Method.state`."""
        return self.method.state()

    def end_step(self, mean: Callable[[Tensor], Tensor]) -> None:
        """See :meth:`Method.end_step`."""
        self.method.end_step(mean)

    def draw(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, *, guidance: float | None = None
    ) -> Tensor:
        """See :meth:`Method.draw`."""
        return self.method.draw(student, noises, condition, guidance=guidance)

    def plain_network(self, student: nn.Module, num_steps: int = 1) -> nn.Module:
        """See :meth:`Method.plain_network`."""
        return self.method.plain_network(student, num_steps)

    def export_notes(self) -> dict[str, Any]:
        """See :meth:`Method.export_notes`."""
        return self.method.export_notes()
