"""Rectified flow (Lipman et al. 2023, Liu et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.process.base import Process


class FlowProcess(Process):
    """Rectified flow: ``alpha = 1 - t``, ``sigma = t``, t in [0, 1]; networks are fed ``1000 t``."""

    name = "flow"
    num_train_timesteps = 1000
    t_max = 1.0

    def angle(self, t: Tensor) -> Tensor:
        """``atan2(t, 1 - t)``."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def time_at(self, angle: Tensor) -> Tensor:
        """``sin / (sin + cos)``."""
        sin, cos = torch.sin(angle.double()), torch.cos(angle.double())
        return sin / (sin + cos)

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1.0 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t.double()

    def model_time(self, t: Tensor) -> Tensor:
        """``1000 t``."""
        return t.double() * self.num_train_timesteps

    @staticmethod
    def shift(t: Tensor, shift: float) -> Tensor:
        """``k t / (1 + (k - 1) t)`` for k = ``shift``: multiplies the SNR by ``1 / k**2`` (Hoogeboom et al. 2023)."""
        t = t.double()
        return shift * t / (1.0 + (shift - 1.0) * t)
