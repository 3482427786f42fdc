"""The exact grounds: mixtures under each process, with guidance, and in more dimensions than two."""

from __future__ import annotations

from dataclasses import dataclass

from ddx.bench.mixtures.mixture import circle, scattered
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher

MANY_POINTS = 1024  # regression on exact pairs is then 15 % off in its widths, and with a quarter of them 19 %


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Eight modes on a circle of the plane, or scattered in 16 dimensions, under one of `PROCESSES`.

    With guidance neighbours are of different classes, and the guided ODE draws them away from each other.
    """

    process: str = "flow"
    guidance: float = 1.0
    dimensions: int = 2

    def teacher(self, *, features: bool = False) -> MixtureTeacher:
        """Return the teacher. With `features` it is the MLP that was fitted to the formula, which has none."""
        mixture = circle(num_classes=1 if self.guidance == 1.0 else 2) if self.dimensions == 2 else scattered()
        teacher = MixtureTeacher(mixture, self.process, guidance=self.guidance).fit()
        return teacher.freeze_fitted() if features else teacher

    @property
    def settings(self) -> dict[str, float]:
        """What a run on it sets over the recipe: its guidance, and in many dimensions more points a step."""
        guidance = {} if self.guidance == 1.0 else {"guidance_min": self.guidance, "guidance_max": self.guidance}
        return guidance if self.dimensions == 2 else {**guidance, "batch_size": MANY_POINTS}


GROUNDS = {
    **{process: Ground(process=process) for process in PROCESSES},
    "guided": Ground(guidance=2.0),
    "16-D": Ground(dimensions=16),
}
