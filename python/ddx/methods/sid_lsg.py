"""SiD-LSG: score identity distillation with long and short guidance (Zhou et al. 2024b, arXiv:2406.01561).

    psi is trained as it is seen at guidance kappa1:  |v_psi^kappa1 - e|^2
    L = mean( d u - alpha d^2 ) / w,   d = y_phi^kappa4 - y_psi^kappa2,   u = y_phi^kappa4 - x,   w = mean|u|

SiD's loss, in which the fake score has classifier-free guidance of its own, whose null condition is trained with it.
1.5 everywhere gave the best FID, 4.5 the best CLIP score. The paper's kappa3, of the fake score
in ``d u - d^2 = d (y_psi - x)``, equals kappa2 in all it shows, and does so here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import Batch
from ddx.methods.parts.config import above_zero
from ddx.methods.parts.flow_view import rows
from ddx.methods.sid import SiD, SiDConfig


@dataclass(frozen=True, kw_only=True)
class SiDLSGConfig(SiDConfig):
    """The guidance of the run, 1.5 unless it is given, stands for each kappa that is not given."""

    kappa1: float | None = option(None, "guidance for training the fake score (none: the run's)")
    kappa2: float | None = option(None, "guidance of the fake score in the student's loss (none: the run's)")
    kappa4: float | None = option(None, "guidance of the teacher in the student's loss (none: the run's)")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "kappa1", "kappa2", "kappa4")


class SiDLSG(SiD):
    """Score identity distillation with long and short guidance."""

    config: SiDLSGConfig

    def usual_guidance(self) -> tuple[float, float]:
        """Return the scale of the published best FID."""
        return 1.5, 1.5

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
