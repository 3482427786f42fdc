"""A discriminator beside any method: it judges what the student draws in one step, and the method's own loss goes on.

    x = f(z)                                              z: unit noise; f: the student's own sampler, in one step
    student  the method's loss + gan_weight * G(D(x_s))   s: the discriminator's times
    D        heads on the frozen teacher's features at (1 - s) x0 + s eps (real) and (1 - s) x + s eps (fake)

Discriminator and student take turns, as in SANA-Sprint (Chen et al. 2025, arXiv:2503.09641), which has the same one.
The stored latents are the real ones: what the teacher drew has its guidance, pictures of a data set have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Losses, Method, NetworkSpec, Turn
from ddx.methods.parts.adversarial import DISCRIMINATOR, FeatureJudge, JudgeConfig
from ddx.methods.parts.config import at_least
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.time_sampling import logit_normal
from ddx.teachers.condition import Condition

Misaligned = Callable[[Batch, Tensor], Tensor | None]
"""From a batch and flow times to further fakes at these times."""


@dataclass(frozen=True, kw_only=True)
class AddedDiscriminatorConfig(JudgeConfig):
    """Settings of a discriminator, for methods that have none of their own."""

    gan_weight: float = option(
        0.0,
        "weight of a discriminator's loss on the student's one-step pictures, 0: no discriminator; "
        "--loss-balance norm keeps it in proportion to the method's loss",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0.0, "gan_weight")
        unused = [spec.name for spec in fields(JudgeConfig) if getattr(self, spec.name) != spec.default]
        if unused and self.gan_weight == 0.0:
            name = unused[0]
            raise UsageError(
                f"{name} = {getattr(self, name)}: there is no discriminator",
                hint=f"--gan-weight 0.1 adds one, or leave {name} away",
            )


class AddedDiscriminator:
    """The discriminator's update, and the loss that the student of `method` gets from it beside its own."""

    turn = Turn(trains=(DISCRIMINATOR,), name="discriminator")

    def __init__(self, method: FlowMethod, config: JudgeConfig, weight: float) -> None:
        self.method, self.config, self.weight = method, config, weight
        self.judge = FeatureJudge(method.view, config)

    def losses(self, heads: nn.Module, x: Tensor, batch: Batch, misaligned: Misaligned | None = None) -> Losses:
        """Return the discriminator's loss on what the student has drawn, x."""
        s, real_s, fake_s = self.noised(x, batch)
        direction = self.method.draw_noise(batch)
        wrong = None if misaligned is None else misaligned(batch, s)
        network = self.method.teacher.network()
        loss = self.judge.discriminator_loss(
            heads, network, real_s, fake_s, s, batch.condition, direction, misaligned=wrong
        )
        return Losses(by_network={DISCRIMINATOR: loss})

    def added_to(self, losses: Losses, heads: nn.Module, x: Tensor, batch: Batch) -> Losses:
        """Return the method's losses, with the adversarial one on x as a second of the student."""
        s, real_s, fake_s = self.noised(x, batch)
        adversarial = self.judge.generator_loss(
            heads, self.method.teacher.network(), real_s, fake_s, s, batch.condition
        )
        second = losses.secondary.get(STUDENT, 0.0) + self.weight * adversarial
        return replace(
            losses,
            secondary={**losses.secondary, STUDENT: second},
            tracked={**losses.tracked, "adversarial": adversarial},
        )

    def noised(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the discriminator's times, and the stored and the generated latents noised to them."""
        method = self.method
        s = logit_normal(batch.random.uniform(), mean=self.config.judge_time_mean, std=self.config.judge_time_std)
        s = s.clamp(method.view.t_min, method.view.t_max)
        return s, method.noisy(batch.x0, method.draw_noise(batch), s), method.noisy(x, method.draw_noise(batch), s)


class WithDiscriminator(Method):
    """`method` and a discriminator of what its student draws in one step; all else is asked of the method."""

    def __init__(self, method: FlowMethod, config: AddedDiscriminatorConfig) -> None:
        self.method = method
        self.discriminator = AddedDiscriminator(method, config, config.gan_weight)
        super().__init__(method.config, method.teacher)
        self.makes, self.sampler, self.folded_steps = method.makes, method.sampler, method.folded_steps
        self.full_precision = method.full_precision

    # what the discriminator adds

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the method's networks, and the heads on the teacher's features."""
        return *self.method.networks(), self.discriminator.judge.spec()

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.discriminator.judge.build() if spec.name == DISCRIMINATOR else self.method.build(spec)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the discriminator's update, then the method's."""
        return self.discriminator.turn, *self.method.turns(step)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the discriminator's loss; or the method's, with the adversarial one as a second of the student."""
        student, heads = networks[STUDENT], networks[DISCRIMINATOR]
        if DISCRIMINATOR in turn.trains:
            with torch.no_grad():
                x = self.one_step(student, batch)
            return self.discriminator.losses(heads, x, batch)
        losses = self.method.losses(turn, batch, networks)
        if STUDENT not in turn.trains:
            return losses
        return self.discriminator.added_to(losses, heads, self.one_step(student, batch), batch)

    def one_step(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return what the student draws in one step, `[B, C, h, w]`, differentiable."""
        guidance = self.method.draw_guidance(batch)
        return self.method.drawn(student, [self.method.draw_noise(batch)], batch.condition, guidance)

    # what is the method's

    @property
    def shares_backbone(self) -> bool:
        """See :class:`Method`."""
        return self.method.shares_backbone

    @shares_backbone.setter
    def shares_backbone(self, shared: bool) -> None:
        self.method.shares_backbone = shared

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

    def renewed(self, step: int) -> tuple[str, ...]:
        """See :meth:`Method.renewed`."""
        return self.method.renewed(step)

    def learning_rate_factor(self, step: int) -> float:
        """See :meth:`Method.learning_rate_factor`."""
        return self.method.learning_rate_factor(step)

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
