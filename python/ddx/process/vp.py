"""The variance-preserving process of a DDPM table (Ho et al. 2020; Kingma et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddx.device import send
from ddx.process.base import Process


class VPProcess(Process):
    """Variance preserving, from a DDPM table; ``t`` is a float timestep in [0, T - 1].

    Between two table entries the angle ``atan2(sigma, alpha)`` is interpolated linearly, so integer times give
    the table exactly and a table that ends at zero SNR (Lin et al. 2024) stays finite. Note that t = 0 is the
    table's first entry, which still carries a little noise.
    """

    name = "vp"

    def __init__(
        self, betas: Sequence[float] | Tensor | None = None, *, alphas_cumprod: Sequence[float] | Tensor | None = None
    ) -> None:
        """Takes the betas ``[T]``, or the cumulated ``alphas_cumprod`` ``[T]`` in [0, 1], strictly falling."""
        if (betas is None) == (alphas_cumprod is None):
            raise ValueError("VPProcess takes either betas or alphas_cumprod")
        if betas is not None:
            table = torch.cumprod(1.0 - torch.as_tensor(betas, dtype=torch.float64), dim=0)
        else:
            table = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        table = table.detach().cpu()
        if table.ndim != 1 or len(table) < 2 or not bool((table.diff() < 0).all()):
            raise ValueError(f"alphas_cumprod must fall strictly over at least 2 steps, got shape {tuple(table.shape)}")
        if not 0.0 <= float(table[-1]) < float(table[0]) <= 1.0:
            raise ValueError(f"alphas_cumprod must lie in [0, 1], got {float(table[0])} to {float(table[-1])}")
        self.alphas_cumprod = table
        self.num_train_timesteps = len(table)
        self.t_max = float(len(table) - 1)
        self.zero_terminal_snr = float(table[-1]) == 0.0
        """Whether the last step is pure noise: then ``eps`` predictions are undefined there."""
        self._angles = {torch.device("cpu"): torch.atan2(torch.sqrt(1.0 - table), torch.sqrt(table))}

    def _angles_on(self, device: torch.device) -> Tensor:
        """The table's angles, copied to each device once."""
        if device not in self._angles:
            self._angles[device] = send(self._angles[torch.device("cpu")], device)
        return self._angles[device]

    def angle(self, t: Tensor) -> Tensor:
        """The table's angle, linear between its entries; times outside the table are clamped to it."""
        angles = self._angles_on(t.device)
        t = t.double().clamp(0.0, self.t_max)
        low = t.floor().long().clamp(max=self.num_train_timesteps - 2)
        return torch.lerp(
            angles.take(low), angles.take(low + 1), t - low
        )  # an index of no dimension would be waited for

    def time_at(self, angle: Tensor) -> Tensor:
        """The inverse of :meth:`angle`; angles outside the table are clamped to it."""
        angles = self._angles_on(angle.device)
        angle = angle.double().clamp(angles[0], angles[-1])
        low = (torch.searchsorted(angles, angle.contiguous(), right=True) - 1).clamp(0, self.num_train_timesteps - 2)
        before, after = angles.take(low), angles.take(low + 1)
        return low + (angle - before) / (after - before)

    def alpha(self, t: Tensor) -> Tensor:
        """``sqrt(alphas_cumprod)``; exactly 0 at the end of a zero-terminal-SNR table."""
        angle = self.angle(t)
        alpha = torch.cos(angle)
        if self.zero_terminal_snr:  # cos(pi / 2) is 6e-17 in float64
            alpha = torch.where(angle >= self._angles_on(angle.device)[-1], 0.0, alpha)
        return alpha

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - alphas_cumprod)``."""
        return torch.sin(self.angle(t))

    def model_time(self, t: Tensor) -> Tensor:
        """``t`` itself."""
        return t.double()

    def position(self, t: Tensor) -> Tensor:
        """``(t + 1) / T``: a sampler with trailing timesteps takes equal steps of it; 0 is behind the table."""
        return (t.double() + 1.0) / self.num_train_timesteps

    def time_of_position(self, position: Tensor) -> Tensor:
        """``T position - 1``, not below the table."""
        return (position.double() * self.num_train_timesteps - 1.0).clamp(min=0.0)
