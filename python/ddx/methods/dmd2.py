"""DMD2: distribution matching without regression (Yin et al. 2024b, arXiv:2405.14867).

    dL/dx = (y_psi - y_phi) / max(mean|x - y_phi|, 1e-5)            both constants
    psi   learns |v_psi - e|^2 on stopgrad(x), five times for each update of the student
    D     heads on psi's features at re-noised real and generated latents:
          psi, D: softplus(-D(real)) + softplus(D(x)),  student: gan_weight softplus(-D(x))

Several steps are trained by backward simulation, see :mod:`ddx.methods.parts.score_distillation`. With `gan_weight` 0
there is no discriminator, and captions are enough.

The settings are those of SDXL in four steps: tianweiy/DMD2 (commit 4e54501c), experiments/sdxl/
sdxl_cond999_8node_lr5e-7_denoising4step_diffusion1000_gan5e-3_guidance8_noinit_noode_backsim_scratch.sh. The presets
have them with their guidance and batch, and those of one step, of Stable Diffusion too. The published head sees the
middle block alone and, as here, no caption but through the network; here there is one for each feature layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.dmd import guarded_dmd_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import FAKE, STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.adversarial import ACCURACY, DISCRIMINATOR, AdversarialConfig, FeatureJudge
from ddx.methods.parts.config import at_least, changed, within
from ddx.methods.parts.score_distillation import Generated, ScoreConfig, ScoreDistillation, Scores
from ddx.networks.guidance import guidance_input
from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class DMD2Config(AdversarialConfig, ScoreConfig):
    """The published form of SDXL, in four steps."""

    num_steps: int = changed(ScoreConfig, "num_steps", 4)
    fake_updates: int = changed(ScoreConfig, "fake_updates", 5)
    gan_loss: str = changed(AdversarialConfig, "gan_loss", "softplus")
    head_condition: bool = changed(AdversarialConfig, "head_condition", False)
    normalise: bool = option(
        True, "divide the difference of the scores by the distance between the teacher's score and the sample"
    )
    gan_weight: float = option(5e-3, "weight of the adversarial loss of the student; 0: no discriminator")
    fake_gan_weight: float = option(1e-2, "share of the discriminator's gradient that reaches the fake score")
    fake_time_low: float | None = option(
        None, "lower limit of the times of fake score and discriminator (none: time_low, the student's)"
    )
    fake_time_high: float | None = option(
        None, "upper limit of the times of fake score and discriminator (none: time_high, the student's)"
    )

    def __post_init__(self) -> None:
        ScoreConfig.__post_init__(self)
        AdversarialConfig.__post_init__(self)
        at_least(self, 0.0, "gan_weight", "fake_gan_weight")
        within(self, 0.0, 1.0, "fake_time_low", "fake_time_high")
        low, high = fake_limits(self)
        if low >= high:
            raise UsageError(
                f"the fake score's times are from {low} to {high}", hint="--fake-time-low 0 --fake-time-high 1"
            )


def fake_limits(config: DMD2Config) -> tuple[float, float]:
    """Return the limits of the fake score's times, as shares of their range."""
    low, high = config.fake_time_low, config.fake_time_high
    return config.time_low if low is None else low, config.time_high if high is None else high


class DMD2(ScoreDistillation):
    """Distribution matching distillation with a discriminator."""

    config: DMD2Config
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 5e-7, "weight_decay": 0.01, "clip_norm": 10.0}

    def __init__(self, config: DMD2Config, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.judge = FeatureJudge(self.view, config) if config.gan_weight > 0.0 else None

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, the fake score, and the heads on its features."""
        return super().networks() if self.judge is None else (*super().networks(), self.judge.spec())

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        if spec.name == DISCRIMINATOR:
            assert self.judge is not None
            return self.judge.build()
        return super().build(spec)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the updates of the fake score together with its heads, then the student's."""
        if self.judge is None:
            return super().turns(step)
        fake = Turn(trains=(FAKE, DISCRIMINATOR), name="fake score")
        return (*self.config.fake_updates * (fake,), Turn(trains=(STUDENT,), name="student"))

    def times_at(self, quantile: Tensor) -> Tensor:
        """See :meth:`FlowMethod.times_at`: the times of the fake score and of the discriminator."""
        return self.times_between(*fake_limits(self.config), quantile)

    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return half the square of the normalised difference of the scores, with itself as the gradient by x."""
        return guarded_dmd_loss(seen.y_teacher, seen.y_fake, x, normalise=self.config.normalise)

    def fake_losses(
        self, x: Tensor, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Losses:
        """Return the fake score's loss, and the discriminator's, whose gradient reaches the fake score scaled."""
        losses = super().fake_losses(x, batch, networks, guidance)
        if self.judge is None:
            return losses
        t, real_t, fake_t = self._judged(x, batch)
        with guidance_input(networks[FAKE], guidance):
            loss, right = self.judge.discriminator_loss(
                networks[DISCRIMINATOR],
                networks[FAKE],
                real_t,
                fake_t,
                t,
                batch.condition,
                self.draw_noise(batch),
                network_gradient=self.config.fake_gan_weight,
            )
        by_network = {**losses.by_network, DISCRIMINATOR: loss}
        return replace(losses, by_network=by_network, tracked={**losses.tracked, ACCURACY: right})

    def second_loss(
        self, made: Generated, seen: Scores, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Tensor | None:
        """Return the weighted adversarial loss of the student."""
        if self.judge is None:
            return None
        t, real_t, fake_t = self._judged(made.x, batch)
        with guidance_input(networks[FAKE], guidance):
            loss = self.judge.generator_loss(
                networks[DISCRIMINATOR], networks[FAKE], real_t, fake_t, t, batch.condition
            )
        return self.config.gan_weight * loss

    def _judged(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return times, and the stored and the generated latents noised to them."""
        t = self.times_at(batch.random.uniform())
        return t, self.noisy(batch.x0, self.draw_noise(batch), t), self.noisy(x, self.draw_noise(batch), t)
