"""SANA-Sprint: sCM and LADD on one student (Chen et al. 2025, arXiv:2503.09641).

student  sCM's loss + weight * G(D(x_s'))           x = f(x_t, t), half of the rows from t = pi / 2
D        hinge on the frozen teacher's features at (1 - s) x0 + s eps; fakes are x, and x0 under another row's caption
log tan  t ~ N(0.2 + log 2, 1.6) for sCM,  s ~ N(-0.6 + log 2, 1) for D      log 2: the paper's s_d is 0.5

Discriminator and student take turns, one update each. The teacher may be taken as it is: its time stays on its own
scale, in float64 (Zheng et al. 2025). The paper tunes its time embedding and norms first, which `ddx prepare` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.adversarial import DISCRIMINATOR, AdversarialConfig, FeatureJudge
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.config import above_zero, at_least, within
from ddx.methods.scm import SCM, SCMConfig
from ddx.methods.time_sampling import logit_normal
from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class SanaSprintConfig(AdversarialConfig, SCMConfig):
    """The published form; guidance ranges over 4 to 5 unless it is given."""

    gan_weight: float = option(0.5, "weight of the adversarial loss of the student")
    noise_share: float = option(0.5, "share of rows whose adversarial branch starts at pure noise")
    misaligned: bool = option(True, "let latents with another row's caption count as fakes too")
    judge_time_mean: float = option(-0.6 + math.log(2.0), "mean of log(sigma / alpha) of the discriminator's times")
    judge_time_std: float = option(1.0, "standard deviation of log(sigma / alpha) of the discriminator's times")

    def __post_init__(self) -> None:
        SCMConfig.__post_init__(self)
        AdversarialConfig.__post_init__(self)
        at_least(self, 0.0, "gan_weight")
        above_zero(self, "judge_time_std")
        within(self, 0.0, 1.0, "noise_share")


class SanaSprint(SCM):
    """Continuous-time consistency distillation with a discriminator."""

    config: SanaSprintConfig
    defaults: ClassVar[Mapping[str, Any]] = {**SCM.defaults, "clip_norm": 0.1}

    def __init__(self, config: SanaSprintConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.judge = FeatureJudge(self.view, config)

    def usual_guidance(self) -> tuple[float, float]:
        """Return the published range."""
        return 4.0, 5.0

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return sCM's networks, and the heads on the teacher's features."""
        return *super().networks(), self.judge.spec()

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.judge.build() if spec.name == DISCRIMINATOR else super().build(spec)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the discriminator's update, then the student's with the weight of the times."""
        consistency = tuple(spec.name for spec in SCM.networks(self))
        return Turn(trains=(DISCRIMINATOR,), name="discriminator"), Turn(trains=consistency, name="student")

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the discriminator's loss; or sCM's, with the adversarial one as the student's second."""
        heads, teacher = networks[DISCRIMINATOR], self.teacher.network()
        if STUDENT in turn.trains:
            losses = super().losses(turn, batch, networks)
            x = self.generate(networks[STUDENT], batch)
            s, real_s, fake_s = self._judged(x, batch)
            adversarial = self.judge.generator_loss(heads, teacher, real_s, fake_s, s, batch.condition)
            return replace(
                losses,
                secondary={STUDENT: self.config.gan_weight * adversarial},
                tracked={**losses.tracked, "adversarial": adversarial},
            )
        with torch.no_grad():
            x = self.generate(networks[STUDENT], batch)
        s, real_s, fake_s = self._judged(x, batch)
        direction, noise = self.draw_noise(batch), self.draw_noise(batch)
        # a row alone has no other one to take the caption of; noised anew, to the time that it is judged at
        wrong = self.noisy(batch.x0.roll(1, 0), noise, s) if self.config.misaligned and len(batch) > 1 else None
        loss = self.judge.discriminator_loss(
            heads, teacher, real_s, fake_s, s, batch.condition, direction, misaligned=wrong
        )
        return Losses(by_network={DISCRIMINATOR: loss})

    def generate(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the clean latents that the student sees behind noisy ones, a share of them pure noise."""
        guidance, noise = self.draw_guidance(batch), self.draw_noise(batch)
        tau = self.times_at(batch.draws.uniform())
        from_noise = batch.draws.uniform() < self.config.noise_share
        x = self.noisy(batch.x0, noise, tau)
        x = torch.where(from_noise.reshape(-1, 1, 1, 1), self.view.start(noise, self.first_time), x)
        return self.predict_x0(student, x, torch.where(from_noise, self.first_time, tau), batch.condition, guidance)

    def _judged(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the discriminator's times, and the stored and the generated latents noised to them."""
        s = logit_normal(batch.draws.uniform(), mean=self.config.judge_time_mean, std=self.config.judge_time_std)
        s = s.clamp(self.view.t_min, self.view.t_max)
        return s, self.noisy(batch.x0, self.draw_noise(batch), s), self.noisy(x, self.draw_noise(batch), s)
