"""Consistency distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2): neighbours on an ODE of the teacher.

x_r  = one step of Heun's method with the teacher's guided velocity, from (x_t, t) to the grid's next time r
loss = d( f(x_t, t), stop-gradient f_average(x_r, r) )                               N = 40, rho = 7, average 0.95
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddx.config import option
from ddx.methods.base import Batch
from ddx.methods.parts.config import changed
from ddx.methods.parts.consistency import GridConfig, GridMethod
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.path import path_velocity


@dataclass(frozen=True, kw_only=True)
class CDConfig(GridConfig):
    """The published form for ImageNet, with the squared distance."""

    loss: str = changed(GridConfig, "loss", "l2")
    target_decay: float = changed(GridConfig, "target_decay", 0.95)
    solver: str = option("heun", "solver of the teacher's step to the earlier time", choices=("heun", "euler"))


class CD(GridMethod):
    """Consistency distillation."""

    config: CDConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 8e-6, "optimizer": "radam"}

    def earlier(
        self, x_t: Tensor, t: Tensor, r: Tensor, noise: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return where the solver takes x_t at r."""
        step, source = rows(r - t, x_t), self.config.velocity_from
        first = path_velocity(self.view, source, x_t, t, noise, batch, guidance)
        euler = x_t + step * first
        if self.config.solver == "euler":
            return euler
        inside = r > 0.0  # the last step, to the picture itself, is Euler's: there is no velocity to ask for
        second = path_velocity(self.view, source, euler, torch.where(inside, r, t), noise, batch, guidance)
        return x_t + 0.5 * step * (first + torch.where(rows(inside, x_t).bool(), second, first))
