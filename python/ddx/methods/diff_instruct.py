"""Diff-Instruct (Luo et al. 2023, arXiv:2305.18455), which is variational score distillation (Wang et al. 2023).

    dL/dx = y_psi - y_phi  =  t (v_phi - v_psi)        both constants, weight 1

the gradient of the Kullback-Leibler divergence between the noised distributions of what is generated and what the
teacher knows, integrated over time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ddx.kernels.dmd import guarded_dmd_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import Batch
from ddx.methods.parts.score_distillation import ScoreConfig, ScoreDistillation, Scores


@dataclass(frozen=True, kw_only=True)
class DiffInstructConfig(ScoreConfig):
    """Nothing of its own."""


class DiffInstruct(ScoreDistillation):
    """Diff-Instruct."""

    config: DiffInstructConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-6, "adam_beta1": 0.0, "adam_beta2": 0.999}

    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return half the squared difference of the scores, with itself as the gradient by x."""
        return guarded_dmd_loss(seen.y_teacher, seen.y_fake, x, normalise=False)
