"""A discriminator beside any method: it judges what the student draws in one step, and the method's own loss goes on.

    x = f(z)                                              z: unit noise; f: the student's own sampler, in one step
    student  the method's loss + gan_weight * G(D(x_s))   s: the discriminator's times
    D        heads on the frozen teacher's features at (1 - s) x0 + s eps (real) and (1 - s) x + s eps (fake)

Discriminator and student take turns, as in SANA-Sprint (Chen et al. 2025, arXiv:2503.09641), which is built of this.
The stored latents are the real ones: what the teacher drew has its guidance, pictures of a data set have none.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.adversarial import DISCRIMINATOR, AdversarialConfig, FeatureJudge, JudgeConfig
from ddx.methods.parts.config import FlowConfig, at_least
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.time_sampling import logit_normal
from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(JudgeConfig):
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


class Judged(FlowMethod):
    """Mixed into a method, before it."""

    config: Any

    def __init__(self, config: Any, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.judge = FeatureJudge(self.view, config)

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the method's networks, and the heads on the teacher's features."""
        return *super().networks(), self.judge.spec()

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.judge.build() if spec.name == DISCRIMINATOR else super().build(spec)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the discriminator's update, then the method's."""
        return Turn(trains=(DISCRIMINATOR,), name="discriminator"), *super().turns(step)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the discriminator's loss; or the method's, with the adversarial one as a second of the student."""
        heads, teacher = networks[DISCRIMINATOR], self.teacher.network()
        if DISCRIMINATOR in turn.trains:
            with torch.no_grad():
                x = self.judged(networks[STUDENT], batch)
            s, real_s, fake_s = self._noised(x, batch)
            direction = self.draw_noise(batch)
            loss = self.judge.discriminator_loss(
                heads, teacher, real_s, fake_s, s, batch.condition, direction, misaligned=self.misaligned(batch, s)
            )
            return Losses(by_network={DISCRIMINATOR: loss})
        losses = super().losses(turn, batch, networks)  # type: ignore[safe-super]  # of the method that it is mixed into
        if STUDENT not in turn.trains:
            return losses
        s, real_s, fake_s = self._noised(self.judged(networks[STUDENT], batch), batch)
        adversarial = self.judge.generator_loss(heads, teacher, real_s, fake_s, s, batch.condition)
        second = losses.secondary.get(STUDENT, 0.0) + self.config.gan_weight * adversarial
        return replace(
            losses,
            secondary={**losses.secondary, STUDENT: second},
            tracked={**losses.tracked, "adversarial": adversarial},
        )

    def judged(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the pictures that are judged, `[B, C, h, w]`: what the student draws in one step."""
        guidance = self.draw_guidance(batch)
        return self.drawn(student, [self.draw_noise(batch)], batch.condition, guidance)

    def misaligned(self, batch: Batch, s: Tensor) -> Tensor | None:
        """Return further fakes, noised to s: none."""
        return None

    def _noised(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the discriminator's times, and the stored and the generated latents noised to them."""
        s = logit_normal(batch.random.uniform(), mean=self.config.judge_time_mean, std=self.config.judge_time_std)
        s = s.clamp(self.view.t_min, self.view.t_max)
        return s, self.noisy(batch.x0, self.draw_noise(batch), s), self.noisy(x, self.draw_noise(batch), s)


@functools.cache
def judged_config(own: type[Any]) -> type[Any]:
    """Return the settings of a method and of the discriminator that it may get; `own` itself if it has one already."""
    if issubclass(own, AdversarialConfig) or not issubclass(own, FlowConfig):
        return own

    def post_init(self: Any) -> None:
        own.__post_init__(self)
        JudgedConfig.__post_init__(self)

    both = type(own.__name__, (JudgedConfig, own), {"__post_init__": post_init, "__doc__": own.__doc__})
    return dataclass(frozen=True, kw_only=True)(both)


@functools.cache
def judged_method(own: type[Any]) -> type[Any]:
    """Return the method `own` with a discriminator beside it."""
    return type(own.__name__, (Judged, own), {"__doc__": own.__doc__})
