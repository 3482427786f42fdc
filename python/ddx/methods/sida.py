"""SiDA: score identity distillation with an adversarial loss (Zhou et al. 2024, arXiv:2410.14919).

    student  SiD's loss + gan_weight weight softplus(-D(x_t))          weight: SiD's own, 1 - t or 1 / w
    psi      |v_psi - e|^2 + fake_gan_weight (softplus(-D(real_t)) + softplus(D(x_t))) / 2
    D        psi's own features, pooled to logits: see :mod:`ddx.methods.parts.self_judge`

Logits come with the pass that gives the score, at the same times and noise. The settings are those of SiD-DiT (Zhou et
al. 2025, arXiv:2509.25127) for SANA: apple-aiml-research/ml-sid-dit (commit 9596ed92), run_sid_dit.sh and
training/sid_dit_training_loop.py, four steps with guidance in both scores. SiDA itself, of one step, has gan_weight
1e-4, weight 1 / w and no guidance, and divides the mean of the adversarial loss over the batch by each row's w.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.base import FAKE, Batch, Losses, Turn
from ddx.methods.parts.adversarial import ACCURACY, accuracy, discriminator_loss, generator_loss
from ddx.methods.parts.config import at_least, changed, within
from ddx.methods.parts.fake_guidance import FakeGuidance, FakeGuidanceConfig
from ddx.methods.parts.score_distillation import Generated, Scores
from ddx.methods.parts.self_judge import SelfJudge
from ddx.methods.parts.weighting import denoising_loss
from ddx.methods.sid import SiD, SiDConfig
from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class SiDAConfig(FakeGuidanceConfig, SiDConfig):
    """The form for flow matching, of four steps from pure noise."""

    num_steps: int = changed(SiDConfig, "num_steps", 4)
    start_time: float = changed(SiDConfig, "start_time", 1.0)
    score_weight: str = changed(SiDConfig, "score_weight", "one-minus-t")
    time_sampling: str = changed(SiDConfig, "time_sampling", "logit-normal")
    time_mean: float = changed(SiDConfig, "time_mean", math.log(2.0))
    time_std: float = changed(SiDConfig, "time_std", 1.6)
    time_low: float = changed(SiDConfig, "time_low", 0.0)
    time_high: float = changed(SiDConfig, "time_high", 1.0)
    gan_weight: float = option(0.01, "weight of the adversarial loss of the student")
    fake_gan_weight: float = option(1.0, "weight of the discriminator's loss beside the fake score's own")
    warmup_share: float = option(
        0.02, "initial share of the run without the student's adversarial loss; in its first half the student rests"
    )

    def __post_init__(self) -> None:
        SiDConfig.__post_init__(self)
        FakeGuidanceConfig.__post_init__(self)
        at_least(self, 0.0, "gan_weight", "fake_gan_weight")
        within(self, 0.0, 1.0, "warmup_share")
        if self.score_gradients == "none" or self.stopped_share > self.warmup_share:
            raise UsageError(
                f"score_gradients = {self.score_gradients}, stopped_share = {self.stopped_share}: the adversarial loss "
                "reaches the student through the fake score",
                hint="leave them away; --method sid has no adversarial loss",
            )


@dataclass(frozen=True, kw_only=True)
class Judged(Scores):
    """With the logits of x_t, `[B, K]`."""

    logits: Tensor


class SiDA(FakeGuidance, SiD):
    """Score identity distillation whose fake score is a discriminator too."""

    config: SiDAConfig
    defaults: ClassVar[Mapping[str, Any]] = {**SiD.defaults, "learning_rate": 5e-6}

    def __init__(self, config: SiDAConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.judge = SelfJudge(teacher)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return SiD's, and the warm-up while it lasts."""
        return (*super().stretched(share), *(("warmup_share",) if share < self.config.warmup_share else ()))

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the updates of the fake score, then the student's; without it at first."""
        turns = super().turns(step)
        return turns[:-1] if step < int(0.5 * self.config.warmup_share * self.train_steps) else turns

    def fake_losses(
        self, x: Tensor, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Losses:
        """Return the fake score's loss with the discriminator's, on stored and generated latents with one noise."""
        times, noise, fake = self.draw_times(batch), self.draw_noise(batch), networks[FAKE]
        x_t, real_t = self.noisy(x, noise, times.t), self.noisy(batch.x0, noise, times.t)
        with self.judge.watch(fake) as seen:
            velocity = self.trained_fake_velocity(fake, x_t, times.t, batch, guidance)
        with self.judge.watch(fake) as of_real:
            self.velocity(fake, real_t, times.t, batch.condition, guidance)
        logits = [self.judge.logits(found[0], x_t, batch.condition) for found in (of_real, seen)]
        judged = 0.5 * discriminator_loss("softplus", *logits)
        loss, dropped = denoising_loss(self.config, velocity, noise - x, times.t, self.fake_weight)
        tracked = {"discriminator": judged, ACCURACY: accuracy("softplus", *logits)}
        weighed = times.weigh(loss + self.config.fake_gan_weight * judged.masked_fill(dropped, 0.0))
        return Losses(by_network={FAKE: weighed}, dropped={FAKE: dropped}, tracked=tracked)

    def look(
        self, x: Tensor, batch: Batch, fake: nn.Module, guidance: Tensor | float, time: Tensor | None = None
    ) -> Judged:
        """Return what both scores see behind x, and the logits."""
        with self.judge.watch(fake) as found:
            seen = super().look(x, batch, fake, guidance, time)
        return Judged(**vars(seen), logits=self.judge.logits(found[0], seen.x_t, batch.condition))

    def second_loss(
        self, made: Generated, seen: Scores, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Tensor | None:
        """Return the weighted adversarial loss of the student."""
        assert isinstance(seen, Judged)
        if self.config.gan_weight == 0.0 or self._waits(batch.step):
            return None
        return self.config.gan_weight * self.weight(made.x, seen) * generator_loss("softplus", seen.logits)

    def host_numbers(self, step: int, progress: float) -> Hashable:
        """Return SiD's, and whether the student still waits for its adversarial loss."""
        return super().host_numbers(step, progress), self._waits(step)

    def _waits(self, step: int) -> bool:
        return step < int(self.config.warmup_share * self.train_steps)
