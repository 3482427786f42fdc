"""SiD: score identity distillation (Zhou et al. 2024, arXiv:2404.04057).

    d = y_phi - y_psi,  u = y_phi - x,  w = max(mean|u|, 1e-5), a constant
    L = mean( c1 d u - alpha d^2 ) / w

Gradients flow through *both* scores into x; their weights are frozen meanwhile. In flow form, with e = eps - x,
``d = t (v_psi - v_phi)`` and ``u = t (e - v_phi)``. c1 = 1, alpha = 0 is the identity-transformed loss (Su 2024), which
in eps form is ``(sigma / alpha)^2 <eps_phi - eps_psi, eps_phi - eps>``. Without the gradients of the scores the
gradient on x is DMD's. SiD-DiT (Zhou et al. 2025, arXiv:2509.25127) puts the weight 1 - t for 1 / w on SANA, Stable
Diffusion 3 and FLUX.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddx.config import option
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.kernels.sid import guarded_sid_loss
from ddx.methods.base import Batch
from ddx.methods.parts.config import changed, within
from ddx.methods.parts.score_distillation import ScoreConfig, ScoreDistillation, Scores

SCORE_GRADIENTS = ("both", "fake", "none")
SCORE_WEIGHTS = ("distance", "one-minus-t")


@dataclass(frozen=True, kw_only=True)
class SiDConfig(ScoreConfig):
    """The published form, which starts at step 625 of 1000."""

    start_time: float = changed(ScoreConfig, "start_time", 0.7143)
    alpha: float = option(1.0, "coefficient of the squared distance of the two scores; 1 to 1.2 in the paper")
    alpha_end: float | None = option(None, "alpha at the end of the run, reached linearly (none: constant)")
    c1: float = option(1.0, "coefficient of the product of distances")
    score_gradients: str = option(
        "both",
        "scores that gradients flow through: both; fake: the teacher takes a straight-through copy of the fake "
        "score's, which saves its graph; none",
        choices=SCORE_GRADIENTS,
    )
    score_weight: str = option(
        "distance",
        "weight of the student's loss; distance: one over the mean distance of the teacher's x0 from the sample; "
        "one-minus-t: 1 - t",
        choices=SCORE_WEIGHTS,
    )
    stopped_share: float = option(0.0, "initial share of the run without gradients through the scores")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "stopped_share")


class SiD(ScoreDistillation):
    """Score identity distillation."""

    config: SiDConfig
    defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-6,
        "adam_beta1": 0.0,
        "adam_beta2": 0.999,
        "ema_half_life": 50_000.0,
    }

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return what alpha moves to, and the share whose gradients are stopped while it lasts."""
        moving = ("alpha_end",) if self.config.alpha_end is not None else ()
        return (*moving, "stopped_share") if share < self.config.stopped_share else moving

    def host_numbers(self, step: int, progress: float) -> Hashable:
        """Return alpha, and whether the scores' gradients are stopped."""
        return self.alpha_at(progress), progress < self.config.stopped_share

    def alpha_at(self, progress: float) -> float:
        """Return alpha at this share of the run."""
        start, end = self.config.alpha, self.config.alpha_end
        return start if end is None else start + (end - start) * progress

    def looks_through(self, batch: Batch) -> tuple[bool, bool]:
        """See :meth:`ScoreDistillation.looks_through`."""
        chosen = "none" if batch.progress < self.config.stopped_share else self.config.score_gradients
        return chosen == "both", chosen != "none"

    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return SiD's loss of each row."""
        y_teacher = seen.y_teacher
        through_teacher, through_fake = self.looks_through(batch)
        if through_fake and not through_teacher:  # its value, with the derivative of the other one
            y_teacher = y_teacher + (seen.y_fake - seen.y_fake.detach())
        alpha, c1 = self.alpha_at(batch.progress), self.config.c1
        loss, dropped = guarded_sid_loss(y_teacher, seen.y_fake, x, alpha=alpha, c1=c1)
        if self.config.score_weight == "one-minus-t":  # the kernel divides by the distance
            loss = loss * (distance(x, seen) * self.weight(x, seen)).masked_fill(dropped, 0.0).to(loss.dtype)
        return GuardedLoss(loss, dropped)

    def weight(self, x: Tensor, seen: Scores) -> Tensor:
        """Return the weight of each row's loss, `[B]`, a constant."""
        return 1.0 / distance(x, seen) if self.config.score_weight == "distance" else 1.0 - seen.t


@torch.no_grad()
def distance(x: Tensor, seen: Scores) -> Tensor:
    """Return ``w = max(mean|y_phi - x|, 1e-5)``, `[B]`."""
    return (seen.y_teacher - x).abs().flatten(1).mean(1).clamp(min=1e-5)
