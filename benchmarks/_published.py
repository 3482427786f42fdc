"""Forms of methods that their authors publish and ddx has no setting for, run as `ddx` is: departures.py measures them.

    python benchmarks/_published.py FORM distill …

Source: FastGen (NVlabs/FastGen at 34f30e8, fastgen/methods/distribution_matching/dmd2.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from torch import Tensor, nn

from ddx.cli.main import main as ddx
from ddx.device import send
from ddx.methods import dmd2
from ddx.methods.base import Batch
from ddx.methods.parts.adversarial import FeatureJudge, pooled
from ddx.methods.parts.score_distillation import Generated
from ddx.methods.parts.time_sampling import grid_index
from ddx.teachers.condition import Condition


class StoredStates(dmd2.DMD2):
    """The student is trained at stored pictures, noised to its times."""

    def generate(self, student: nn.Module, batch: Batch, guidance: Tensor | float) -> Generated:
        """See :meth:`ScoreDistillation.generate`."""
        num_steps, noise = self.config.num_steps, self.draw_noise(batch)
        times = send(self.student_times(num_steps), noise.device)
        t = times[grid_index(batch.random.uniform(), num_steps) - 1]
        start = self.noisy(batch.x0, noise, t)
        return Generated(x=self.predict_x0(student, start, t, batch.condition, guidance), start=start, time=t)


class MiddleOfTheTeacher(FeatureJudge):
    """One head, on the middle block of the frozen teacher."""

    def build(self) -> nn.Module:
        """See :meth:`FeatureJudge.build`."""
        heads = super().build()
        heads.heads = nn.ModuleList([heads.heads[len(heads.heads) // 2]])
        return heads

    def logits(
        self, heads: nn.Module, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition, **_: Any
    ) -> Tensor:
        """See :meth:`FeatureJudge.logits`."""
        features = self.view.features(self.view.teacher.network(), x_t, t, condition)
        logits: Tensor = heads(
            [features[len(features) // 2]], pooled(condition) if self.config.head_condition else None
        )
        return logits


class HeadOnTheTeacher(dmd2.DMD2):
    """The discriminator is a head on the middle block of the frozen teacher."""

    def __init__(self, config: dmd2.DMD2Config, teacher: Any) -> None:
        super().__init__(config, teacher)
        self.judge = MiddleOfTheTeacher(self.view, config)


class OneNoise(dmd2.DMD2):
    """The discriminator sees a stored and a generated picture through the same noise."""

    def _judged(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        t, noise = self.times_at(batch.random.uniform()), self.draw_noise(batch)
        return t, self.noisy(batch.x0, noise, t), self.noisy(x, noise, t)


FORMS: dict[str, type[dmd2.DMD2]] = {
    "stored states": StoredStates,
    "head on the teacher": HeadOnTheTeacher,
    "one noise": OneNoise,
}

if __name__ == "__main__":
    dmd2.DMD2 = FORMS[sys.argv[1]]  # type: ignore[misc]
    ddx(sys.argv[2:])
