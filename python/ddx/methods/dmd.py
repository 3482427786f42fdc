"""DMD: distribution matching with a regression on the teacher's own pairs (Yin et al. 2024a, arXiv:2311.18828).

    dL/dx = (y_psi - y_phi) / max(mean|x - y_phi|, 1e-5)            both constants
    + weight |x(z) - ODE_phi(z)|^2                                  noise z, and where the teacher's ODE takes it

The pairs are solved on the way, by a few steps of Heun's rule, or are stored ones as in the paper, which then are drawn
from their own noise; the distance is taken of latents, where the paper's is LPIPS of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.dmd import guarded_dmd_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import STUDENT, Batch
from ddx.methods.parts.config import PAIRS, at_least
from ddx.methods.parts.flow_view import mean_square
from ddx.methods.parts.pairs import SAMPLER_HELP, check_pairs, sampled_end
from ddx.methods.parts.score_distillation import Generated, ScoreConfig, ScoreDistillation, Scores
from ddx.teachers.base import Teacher
from ddx.teachers.samplers.names import DETERMINISTIC, OWN


@dataclass(frozen=True, kw_only=True)
class DMDConfig(ScoreConfig):
    """The published form, of one step from pure noise."""

    regression_weight: float = option(
        0.25, "weight of the regression on pairs of noise and the teacher's picture; 0: no regression"
    )
    pairs: str = option(
        "solved",
        "source of the pairs: solved in each step, or stored by `ddx precompute --synthetic`",
        choices=PAIRS,
    )
    sampler: str = option(OWN, SAMPLER_HELP, choices=DETERMINISTIC)
    regression_steps: int = option(
        8, "solver steps, of the own sampler two evaluations each, from noise to the teacher's picture"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0.0, "regression_weight")
        at_least(self, 1, "regression_steps")
        if self.num_steps != 1 or self.start_time != 1.0:
            raise UsageError(
                f"num_steps = {self.num_steps} and start_time = {self.start_time}: dmd pairs pure noise with pictures, "
                "in one step",
                hint="--method dmd2 trains several steps, and others than the noisiest",
            )


class DMD(ScoreDistillation):
    """Distribution matching distillation."""

    config: DMDConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "weight_decay": 0.01, "clip_norm": 10.0}

    def __init__(self, config: DMDConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        check_pairs(config.sampler, config.pairs, teacher)

    @property
    def reads_pairs(self) -> bool:
        """See :meth:`Method.reads_pairs`."""
        return self.config.pairs == "stored" and self.config.regression_weight > 0.0

    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return half the square of the normalised difference of the scores, with itself as the gradient by x."""
        return guarded_dmd_loss(seen.y_teacher, seen.y_fake, x)

    def second_loss(
        self, made: Generated, seen: Scores, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Tensor | None:
        """Return the weighted square distance from where the teacher's ODE takes the same noise."""
        if self.config.regression_weight == 0.0:
            return None
        if batch.noise is None:
            x, end = made.x, self.ode_end(made.start, batch, guidance)
        else:
            start = self.view.start(batch.noise, self.first_time)
            time = made.time.new_full((len(batch),), self.first_time)
            x, end = self.predict_x0(networks[STUDENT], start, time, batch.condition, guidance), batch.x0
        return self.config.regression_weight * mean_square(x - end)

    def ode_end(self, x: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return where the guided teacher's ODE takes x, which is at the noisiest time."""
        if self.config.sampler != OWN:
            return sampled_end(self.view, self.config.sampler, x, batch, guidance, self.config.regression_steps)

        def slope(x: Tensor, t: Tensor) -> Tensor:
            return self.teacher_velocity(x, t, batch, guidance)

        return self.view.ode_end(slope, x, self.config.regression_steps)
