"""SiD-LSG: score identity distillation with long and short guidance (Zhou et al. 2024b, arXiv:2406.01561).

    psi is trained as it is seen at guidance kappa1:  |v_psi^kappa1 - e|^2
    L = mean( d u - alpha d^2 ) / w,   d = y_phi^kappa4 - y_psi^kappa2,   u = y_phi^kappa4 - x,   w = mean|u|

SiD's loss, in which the fake score has classifier-free guidance of its own, see :mod:`ddx.methods.parts.fake_guidance`.
1.5 everywhere gave the best FID, 4.5 the best CLIP score.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddx.methods.parts.fake_guidance import FakeGuidance, FakeGuidanceConfig
from ddx.methods.sid import SiD, SiDConfig


@dataclass(frozen=True, kw_only=True)
class SiDLSGConfig(FakeGuidanceConfig, SiDConfig):
    """The guidance of the run, 1.5 unless it is given, stands for each kappa that is not given."""

    def __post_init__(self) -> None:
        SiDConfig.__post_init__(self)
        FakeGuidanceConfig.__post_init__(self)


class SiDLSG(FakeGuidance, SiD):
    """Score identity distillation with long and short guidance."""

    config: SiDLSGConfig

    def usual_guidance(self) -> tuple[float, float]:
        """Return the scale of the published best FID."""
        return 1.5, 1.5
