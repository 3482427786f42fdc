"""A teacher prepared for continuous-time distillation (Chen et al. 2025, arXiv:2503.09641, section 3.2).

    loss = | v_theta(x_t, t, c) - v_phi(x_t, t, c) |^2                     phi: the teacher as it was, without guidance

theta has norms on its queries and keys, which keep what attention adds to a derivative small, and a time embedding that
sees t itself: the sinusoids of 1000 t turn a thousand times as fast, and so does all that is derived by t. The paper
tunes on pictures for 5000 steps; here the teacher's own velocity is the target, which is what pictures say on average.
A share of the rows has the empty caption, since students learn from the guided teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.preparation_config import PreparationConfig
from ddx.teachers.base import Sampler
from ddx.teachers.condition import Condition


class Preparation(FlowMethod):
    """The tuning of a teacher towards itself."""

    config: PreparationConfig
    makes: str = "teacher"
    sampler: Sampler = "own"

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return the teacher's network with what it is prepared for."""
        return self.teacher.prepared_network(qk_norm=self.config.qk_norm, dense_time=self.config.dense_time)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the squared distance of the two velocities, a mean over the elements of each row."""
        times, noise = self.draw_times(batch), self.draw_noise(batch)
        x_t = self.noisy(batch.x0, noise, times.t)
        condition = self.captions(batch)
        with torch.no_grad():
            wanted = self.view.velocity(self.teacher.network(), x_t, times.t, condition)
        found = self.view.velocity(networks[STUDENT], x_t, times.t, condition)
        loss, dropped = guarded_consistency_loss(found, wanted, c=None)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})

    def captions(self, batch: Batch) -> Condition:
        """Return the captions, with the empty one in a share of the rows."""
        num_rows = len(batch.x0)
        dropped: Tensor = batch.random.uniform() < self.config.null_share
        both = Condition.cat([batch.condition, batch.null.expand(num_rows)])
        row = torch.arange(num_rows, device=dropped.device)
        return both.index(torch.where(dropped, row + num_rows, row))

    def export_notes(self) -> dict[str, Any]:
        """Return what a reader of the folder must know to use it as a teacher."""
        teacher = self.teacher
        return {
            "prepared_from": teacher.made_of,
            "qk_norm": self.config.qk_norm,
            "dense_time": self.config.dense_time,
            "guidance": teacher.default_guidance,
            "draws_scenes": teacher.draws_scenes,
        }
