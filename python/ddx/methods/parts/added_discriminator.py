"""A discriminator beside any method: it judges what the student draws in one step, and the method's own loss goes on.

    x = f(z)                                              z: unit noise; f: the student's own sampler, in one step
    student  the method's loss + gan_weight * G(D(x_s))   s: the discriminator's times
    D        heads on the frozen teacher's features at (1 - s) x0 + s eps (real) and (1 - s) x + s eps (fake)

Discriminator and student take turns, as in SANA-Sprint (Chen et al. 2025, arXiv:2503.09641), which has the same one.
The stored latents are the real ones: what the teacher drew has its guidance, pictures of a data set have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.adversarial import ACCURACY, DISCRIMINATOR, FeatureJudge, JudgeConfig
from ddx.methods.parts.around import Around
from ddx.methods.parts.config import at_least
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.time_sampling import logit_normal

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
        loss, right = self.judge.discriminator_loss(
            heads, network, real_s, fake_s, s, batch.condition, direction, misaligned=wrong
        )
        return Losses(by_network={DISCRIMINATOR: loss}, tracked={ACCURACY: right})

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


class WithDiscriminator(Around):
    """`method` and a discriminator of what its student draws in one step."""

    method: FlowMethod

    def __init__(self, method: FlowMethod, config: AddedDiscriminatorConfig) -> None:
        super().__init__(method)
        self.discriminator = AddedDiscriminator(method, config, config.gan_weight)

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
