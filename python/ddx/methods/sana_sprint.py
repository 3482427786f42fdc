"""SANA-Sprint: sCM and LADD on one student (Chen et al. 2025, arXiv:2503.09641).

student  sCM's loss + weight * G(D(x_s'))           x = f(x_t, t), half of the rows from t = pi / 2
D        hinge on the frozen teacher's features at (1 - s) x0 + s eps; fakes are x, and x0 under another row's caption
log tan  t ~ N(0.2 + log 2, 1.6) for sCM,  s ~ N(-0.6 + log 2, 1) for D      log 2: the paper's s_d is 0.5

Discriminator and student take turns, one update each. The teacher may be taken as it is: its time stays on its own
scale, in float64 (Zheng et al. 2025). The paper tunes its time embedding and norms first, which `ddx prepare` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.added_discriminator import AddedDiscriminator
from ddx.methods.parts.adversarial import DISCRIMINATOR, JudgeConfig
from ddx.methods.parts.config import FlowConfig, at_least, changed, within
from ddx.methods.scm import SCM, SCMConfig
from ddx.teachers.base import Teacher

# TrigFlow's t = pi / 2 and 1.3, as flow times sin(t) / (sin(t) + cos(t)): what its pipeline's two steps start from.
PUBLISHED_TIMES = (1.0, 0.7827)


@dataclass(frozen=True, kw_only=True)
class SanaSprintConfig(JudgeConfig, SCMConfig):
    """The published form; guidance ranges over 4 to 5 unless it is given."""

    student_times: tuple[float, ...] = changed(FlowConfig, "student_times", PUBLISHED_TIMES)
    gan_weight: float = option(0.5, "weight of the adversarial loss of the student")
    noise_share: float = option(0.5, "share of rows whose adversarial branch starts at pure noise")
    misaligned: bool = option(True, "also count latents with another row's caption as fakes")

    def __post_init__(self) -> None:
        SCMConfig.__post_init__(self)
        JudgeConfig.__post_init__(self)
        at_least(self, 0.0, "gan_weight")
        within(self, 0.0, 1.0, "noise_share")


class SanaSprint(SCM):
    """Continuous-time consistency distillation with a discriminator."""

    config: SanaSprintConfig
    defaults: ClassVar[Mapping[str, Any]] = {**SCM.defaults, "clip_norm": 0.1}

    def __init__(self, config: SanaSprintConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.discriminator = AddedDiscriminator(self, config, config.gan_weight)

    @property
    def reads_neighbours(self) -> bool:
        """See :meth:`Method.reads_neighbours`."""
        return self.config.misaligned

    def usual_guidance(self) -> tuple[float, float]:
        """Return the published range."""
        return 4.0, 5.0

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return sCM's networks, and the heads on the teacher's features."""
        return *super().networks(), self.discriminator.judge.spec()

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.discriminator.judge.build() if spec.name == DISCRIMINATOR else super().build(spec)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the discriminator's update, then sCM's."""
        return self.discriminator.turn, *super().turns(step)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the discriminator's loss; or sCM's, with the adversarial one as a second of the student."""
        student, heads = networks[STUDENT], networks[DISCRIMINATOR]
        if DISCRIMINATOR in turn.trains:
            with torch.no_grad():
                x = self.judged(student, batch)
            return self.discriminator.losses(heads, x, batch, self.misaligned)
        losses = super().losses(turn, batch, networks)
        return self.discriminator.added_to(losses, heads, self.judged(student, batch), batch)

    def judged(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the clean latents that the student sees behind noisy ones, a share of them pure noise."""
        guidance, noise = self.draw_guidance(batch), self.draw_noise(batch)
        tau = self.times_at(batch.random.uniform())
        from_noise = batch.random.uniform() < self.config.noise_share
        x = self.noisy(batch.x0, noise, tau)
        x = torch.where(from_noise.reshape(-1, 1, 1, 1), self.view.start(noise, self.first_time), x)
        return self.predict_x0(student, x, torch.where(from_noise, self.first_time, tau), batch.condition, guidance)

    def misaligned(self, batch: Batch, s: Tensor) -> Tensor | None:
        """Return another row's stored latents, noised anew to s; they meet this row's caption."""
        noise = self.draw_noise(batch)
        if batch.neighbour is None or not self.config.misaligned:
            return None
        return self.noisy(batch.neighbour, noise, s)
