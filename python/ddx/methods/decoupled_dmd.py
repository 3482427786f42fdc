"""Decoupled DMD (Liu et al. 2025, arXiv:2511.22677), by which Z-Image-Turbo is distilled.

    dL/dx = dm_weight (y_psi - y_phi) / w_dm                      at t_dm, over all times
          + ca_weight (guidance - 1) (y_null - y_phi) / w_ca      at t_ca, cleaner than the step that x comes from

DMD with guidance is the sum of two terms at one time: distribution matching, which regularises, and the augmentation by
guidance, which makes the steps few. Here each is re-noised at its own times with its own noise: the second leaves alone
what the earlier steps have settled (the paper's schedule "Decoupled-Hybrid", its equation 8 and algorithm 1). Scores
are constants; y_phi and y_psi have no guidance, y_null is the teacher's without the caption.

The paper writes s for the scores and has no normaliser; its figures on SDXL are DMD2's setup with these times. As in
DMD2 the scores are predictions of x0 here, and each term is divided by the distance between the sample and the
teacher's x0, w = max(mean|x - y|, 1e-5), with guidance in w_ca; `normalise` off leaves both out. The settings are those
of DMD2's SDXL, and the paper's four steps and uniform times. `reward` adds what DMDR does beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.kernels.dmd import guarded_dmd_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import Batch
from ddx.methods.parts.config import at_least, changed
from ddx.methods.parts.flow_view import clean
from ddx.methods.parts.score_distillation import ScoreConfig, ScoreDistillation, Scores


@dataclass(frozen=True, kw_only=True)
class DecoupledDMDConfig(ScoreConfig):
    """The published form of four steps."""

    num_steps: int = changed(ScoreConfig, "num_steps", 4)
    fake_updates: int = changed(ScoreConfig, "fake_updates", 5)
    time_low: float = changed(ScoreConfig, "time_low", 0.0)
    time_high: float = changed(ScoreConfig, "time_high", 1.0)
    dm_weight: float = option(1.0, "weight of distribution matching, without guidance")
    ca_weight: float = option(1.0, "weight of the augmentation by guidance, beside guidance - 1")
    normalise: bool = option(
        True, "divide each term by the distance between the teacher's x0 and the sample at the term's own time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0.0, "dm_weight", "ca_weight")


@dataclass(frozen=True, kw_only=True)
class DecoupledScores(Scores):
    """And the teacher's x0 at the other times, with guidance and without."""

    t_ca: Tensor
    y_guided: Tensor
    y_unguided: Tensor


class DecoupledDMD(ScoreDistillation):
    """Distribution matching and the augmentation by guidance, each at its own times."""

    config: DecoupledDMDConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 5e-7, "weight_decay": 0.01, "clip_norm": 10.0}

    def look(
        self, x: Tensor, batch: Batch, fake: nn.Module, guidance: Tensor | float, time: Tensor | None = None
    ) -> DecoupledScores:
        """Return what all scores see behind x, which comes from flow times `time` (None: from the noisiest)."""
        seen = super().look(x, batch, fake, guidance)
        from_time = seen.t.new_full(seen.t.shape, self.view.t_max) if time is None else time
        # uniform in flow time, or in the timesteps of a process that has them
        share = batch.random.uniform() * self.view.position(from_time)
        t_ca, noise = self.view.time_of_position(share).clamp(min=self.view.t_min), self.draw_noise(batch)
        with torch.no_grad():
            x_ca = self.noisy(x, noise, t_ca)
            y_guided = clean(x_ca, t_ca, super().teacher_velocity(x_ca, t_ca, batch, guidance))
            y_unguided = clean(x_ca, t_ca, self.teacher_velocity(x_ca, t_ca, batch, 1.0))
        return DecoupledScores(**vars(seen), t_ca=t_ca, y_guided=y_guided, y_unguided=y_unguided)

    def teacher_velocity(self, x: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return the teacher's velocity without guidance: what distribution matching compares."""
        return super().teacher_velocity(x, t, batch, 1.0)

    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return half the squares of both terms, whose gradient by x is their sum."""
        assert isinstance(seen, DecoupledScores)
        normalise = self.config.normalise
        dm = guarded_dmd_loss(seen.y_teacher, seen.y_fake, x, normalise=normalise)
        # y_unguided - y_guided = (guidance - 1) (y_null - y_unguided)
        ca = guarded_dmd_loss(seen.y_guided, seen.y_unguided, x, normalise=normalise)
        dropped, loss = dm.dropped | ca.dropped, self.config.dm_weight * dm.loss + self.config.ca_weight * ca.loss
        return GuardedLoss(torch.where(dropped, 0.0, loss), dropped)
