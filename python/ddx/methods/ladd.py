"""LADD: latent adversarial diffusion distillation (Sauer et al. 2024, arXiv:2403.12015).

    x_s = (1 - s) x0 + s eps,  x = x_s - s v_theta(x_s, s)             s: a time of the sampler, mostly pure noise
    D   heads on the frozen teacher's block features at re-noised latents: x0 (real) and stopgrad(x) (fake)
    t   of the re-noising: logit-normal(1, 1), heavy on noise, where features are of composition and not of texture

The stored latents are the real ones: drawn by the teacher, their guidance is what the student learns; pictures of a
data set teach it what those are.

AMD's Nitro-1 (AMD-AIG-AIMA/AMD-Diffusion-Distillation at cba032e, train.py) adds two things. The student draws from the
noise that the teacher drew x0 from, and |x - x0| is a second loss (`regression_weight`), square where it is small. And
stored latents beside another caption are half of the fakes (`misaligned`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ddx.config import option
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.adversarial import ACCURACY, DISCRIMINATOR, FeatureJudge
from ddx.methods.parts.adversarial_student import AdversarialStudent, AdversarialStudentConfig
from ddx.methods.parts.config import at_least
from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class LADDConfig(AdversarialStudentConfig):
    """The published form, of up to four steps."""

    regression_weight: float = option(
        0.0, "weight of the distance from the stored picture, drawn from its noise; takes `ddx precompute --synthetic`"
    )
    misaligned: bool = option(False, "show the discriminator stored latents with other captions as fakes")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0.0, "regression_weight")


class LADD(AdversarialStudent):
    """Latent adversarial diffusion distillation."""

    config: LADDConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "adam_beta1": 0.0, "adam_beta2": 0.99}

    def __init__(self, config: LADDConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.judge = FeatureJudge(self.view, config)

    @property
    def reads_pairs(self) -> bool:
        """See :meth:`Method.reads_pairs`."""
        return self.config.regression_weight > 0.0

    @property
    def reads_neighbours(self) -> bool:
        """See :meth:`Method.reads_neighbours`."""
        return self.config.misaligned

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the heads on the teacher's features."""
        return NetworkSpec(name=STUDENT), self.judge.spec()

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.judge.build() if spec.name == DISCRIMINATOR else super().build(spec)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the discriminator's loss, or the student's."""
        of_student = STUDENT in turn.trains
        with torch.set_grad_enabled(of_student and torch.is_grad_enabled()):
            x = self.generate(networks[STUDENT], batch)
        times = self.draw_times(batch)
        real_t = self.noisy(batch.x0, self.draw_noise(batch), times.t)
        fake_t = self.noisy(x, self.draw_noise(batch), times.t)
        seen = (networks[DISCRIMINATOR], self.teacher.network(), real_t, fake_t, times.t, batch.condition)
        if of_student:
            loss = times.weight * self.judge.generator_loss(*seen)
            return Losses(by_network={STUDENT: loss}, secondary=self.regression(x, batch), generated=x)
        direction, other = self.draw_noise(batch), None
        if self.config.misaligned and batch.neighbour is not None:
            other = self.noisy(batch.neighbour, self.draw_noise(batch), times.t)
        loss, right = self.judge.discriminator_loss(*seen, direction, misaligned=other)
        return Losses(by_network={DISCRIMINATOR: times.weigh(loss)}, tracked={ACCURACY: right})

    def regression(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the student's weighted distance from the stored pictures, `[B]`, if it has one."""
        if batch.noise is None or self.config.regression_weight == 0.0:
            return {}
        distance = smooth_l1_loss(x, batch.x0, reduction="none").flatten(1).mean(1)
        return {STUDENT: self.config.regression_weight * distance}
