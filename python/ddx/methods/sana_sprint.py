"""SANA-Sprint: sCM and LADD on one student (Chen et al. 2025, arXiv:2503.09641).

student  sCM's loss + weight * G(D(x_s'))           x = f(x_t, t), half of the rows from t = pi / 2
D        hinge on the frozen teacher's features at (1 - s) x0 + s eps; fakes are x, and x0 under another row's caption
log tan  t ~ N(0.2 + log 2, 1.6) for sCM,  s ~ N(-0.6 + log 2, 1) for D      log 2: the paper's s_d is 0.5

Discriminator and student take turns, one update each. The teacher may be taken as it is: its time stays on its own
scale, in float64 (Zheng et al. 2025). The paper tunes its time embedding and norms first, which `ddx prepare` does; the
authors' own tuned teachers are `sana-sprint-600m-teacher` and `sana-sprint-1600m-teacher`.

The defaults are the authors' (NVlabs/Sana at 3e449ba, in configs/sana_sprint_config/1024ms/
SanaSprint_1600M_1024px_allqknorm_bf16_scm_ladd.yaml): CAME, a warm-up of 5000 steps, guidance from a set of three, the
tangent's warm-up over 4000 updates of both networks together (at 0c07b19, train_scripts/train_scm_ladd.py,
`global_step`). There the student's rate alone warms up, here that of both does. The number of steps is that of the
example of diffusers (at 58eb52c, examples/research_projects/sana/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.device import send
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.added_discriminator import AddedDiscriminator
from ddx.methods.parts.adversarial import DISCRIMINATOR, JudgeConfig
from ddx.methods.parts.config import at_least, changed, within
from ddx.methods.scm import SCM, SCMConfig
from ddx.teachers.base import Teacher

# TrigFlow's t = pi / 2 and 1.3, as flow times sin(t) / (sin(t) + cos(t)): what its pipeline's two steps start from.
PUBLISHED_TIMES = (1.0, 0.7827)


@dataclass(frozen=True, kw_only=True)
class SanaSprintConfig(JudgeConfig, SCMConfig):
    """The published form; guidance ranges over 4 to 5 unless it is given."""

    tangent_warmup: float = changed(SCMConfig, "tangent_warmup", 4000.0)
    guidance_set: tuple[float, ...] | None = option(
        (4.0, 4.5, 5.0),
        "guidance scales to train, each as often (none, or --guidance-min given: a range)",
        metavar="S,S,…",
    )
    gan_weight: float = option(0.5, "weight of the adversarial loss of the student")
    noise_share: float = option(0.5, "share of rows whose adversarial branch starts at pure noise")
    misaligned: bool = option(True, "also count latents with another row's caption as fakes")

    def __post_init__(self) -> None:
        SCMConfig.__post_init__(self)
        JudgeConfig.__post_init__(self)
        at_least(self, 0.0, "gan_weight")
        if self.guidance_set == ():
            raise UsageError("guidance_set is empty", hint="--guidance-set 4,4.5,5; none for a range")
        within(self, 0.0, 1.0, "noise_share")


class SanaSprint(SCM):
    """Continuous-time consistency distillation with a discriminator."""

    config: SanaSprintConfig
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-6,
        "optimizer": "came",
        "adam_beta2": 0.999,
        "clip_norm": 0.1,
        "warmup_steps": 5000,
        "train_steps": 30_000,
    }

    def __init__(self, config: SanaSprintConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.discriminator = AddedDiscriminator(self, config, config.gan_weight)

    @property
    def reads_neighbours(self) -> bool:
        """See :meth:`Method.reads_neighbours`."""
        return self.config.misaligned

    def usual_guidance(self) -> tuple[float, float]:
        """Return the range of the published set."""
        scales = self.config.guidance_set or (4.0, 5.0)
        return min(scales), max(scales)

    def usual_times(self) -> tuple[float, ...]:
        """Return the published two times."""
        return PUBLISHED_TIMES

    def draw_guidance(self, batch: Batch) -> Tensor | float:
        """Return the guidance of each row, one of the set unless a range was given, or the one that is fixed."""
        config, drawn = self.config, super().draw_guidance(batch)
        given = config.guidance_min is not None or config.guidance_max is not None
        if given or config.guidance_set is None or not isinstance(drawn, Tensor):
            return drawn
        scales = send(torch.tensor(config.guidance_set, dtype=drawn.dtype), drawn.device)
        share = (drawn - self.guidance_min) / (self.guidance_max - self.guidance_min)
        return scales[(share * len(scales)).long().clamp(max=len(scales) - 1)]

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
