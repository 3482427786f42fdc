"""Classifier-free guidance of the fake score itself, mixed into methods of score distillation (Zhou et al. 2024b).

    psi is trained as it is seen at guidance kappa1:  |v_psi^kappa1 - e|^2
    the student's loss sees psi at kappa2, and phi at kappa4

The null condition of the fake score is trained with it. The paper's kappa3, of the fake score in
``d u - d^2 = d (y_psi - x)``, equals kappa2 in all it shows, and does so here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import Batch
from ddx.methods.parts.config import above_zero
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.score_distillation import ScoreDistillation

if TYPE_CHECKING:
    _Mixed = ScoreDistillation
else:
    _Mixed = object


@dataclass(frozen=True, kw_only=True)
class FakeGuidanceConfig:
    """Three scales; the guidance of the run stands for each that is not given. Their __post_init__ calls this one."""

    kappa1: float | None = option(None, "guidance for training the fake score (none: the run's)")
    kappa2: float | None = option(None, "guidance of the fake score in the student's loss (none: the run's)")
    kappa4: float | None = option(None, "guidance of the teacher in the student's loss (none: the run's)")

    def __post_init__(self) -> None:
        above_zero(self, "kappa1", "kappa2", "kappa4")


class FakeGuidance(_Mixed):
    """The velocities at those scales. Each asks with the caption first, and then with the null condition."""

    config: Any  # a FakeGuidanceConfig, and the settings of what it is mixed into

    def trained_fake_velocity(
        self, fake: nn.Module, x_t: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return the fake score's velocity with guidance kappa1."""
        return self._guided(fake, x_t, t, batch, guidance, self.config.kappa1)

    def fake_velocity(self, fake: nn.Module, x_t: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return the fake score's velocity with guidance kappa2."""
        return self._guided(fake, x_t, t, batch, guidance, self.config.kappa2)

    def teacher_velocity(self, x: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return the teacher's velocity with guidance kappa4."""
        return super().teacher_velocity(x, t, batch, guidance if self.config.kappa4 is None else self.config.kappa4)

    def _guided(
        self, fake: nn.Module, x_t: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float, kappa: float | None
    ) -> Tensor:
        scale = guidance if kappa is None else kappa
        cond = self.velocity(fake, x_t, t, batch.condition, guidance)
        if not isinstance(scale, Tensor) and scale == 1.0:
            return cond
        # two passes and not one doubled batch, since what is fed to the network is one number a row
        null = self.velocity(fake, x_t, t, batch.null.expand(len(x_t)), guidance)
        return null + rows(scale, x_t) * (cond - null)
