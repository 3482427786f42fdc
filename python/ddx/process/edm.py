"""The variance-exploding process of Karras et al. 2022, EDM."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.process.base import Process


class EDMProcess(Process):
    """Variance exploding: ``alpha = 1``, ``sigma = t``; networks are fed ``log(t) / 4``."""

    name = "edm"
    num_train_timesteps = 1000
    rho = 7.0

    def __init__(self, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        """Takes the range of noise levels."""
        self.t_min, self.t_max = sigma_min, sigma_max

    def angle(self, t: Tensor) -> Tensor:
        """``atan(t)``."""
        return torch.atan(t.double())

    def time_at(self, angle: Tensor) -> Tensor:
        """``tan``, clamped to the range."""
        return torch.tan(angle.double()).clamp(self.t_min, self.t_max)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t.double()

    def model_time(self, t: Tensor) -> Tensor:
        """``log(t) / 4``."""
        return t.double().log() / 4.0

    def position(self, t: Tensor) -> Tensor:
        """Where Karras' grid with rho = 7 has ``t``."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        place: Tensor = (t.double() ** (1 / self.rho) - low) / (high - low)
        return place

    def time_of_position(self, position: Tensor) -> Tensor:
        """The inverse of :meth:`position`."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        time: Tensor = (low + position.double() * (high - low)) ** self.rho
        return time
