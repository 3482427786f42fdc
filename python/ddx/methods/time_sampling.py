"""How training times are drawn: monotone maps from a uniform number to a position on [0, 1), 1 being noise.

They act on the uniform numbers that belong to the rows, so that a draw is the same on any number of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(u: Tensor) -> Tensor:
    """Return `u` itself."""
    return u


def logit_normal(u: Tensor, *, mean: float, std: float) -> Tensor:
    """Return positions whose logit is normal (Esser et al. 2024), float64, the shape of `u` in [0, 1)."""
    inside = u.double().clamp(1e-9, 1.0 - 1e-9)
    return torch.sigmoid(mean + std * torch.special.ndtri(inside))


def shifted(u: Tensor, *, shift: float) -> Tensor:
    """Return `k u / (1 + (k - 1) u)`: for k > 1 more mass near noise (Esser et al. 2024)."""
    u = u.double()
    return shift * u / (1.0 + (shift - 1.0) * u)


def sample_positions(u: Tensor, *, kind: str, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> Tensor:
    """Return positions in [0, 1) float64 for uniform `u`, by the `kind` of distribution: its name in the configs."""
    match kind:
        case "uniform":
            return uniform(u)
        case "logit-normal":
            return logit_normal(u, mean=mean, std=std)
        case "shifted":
            return shifted(u, shift=shift)
    raise ValueError(f"unknown time sampling {kind!r}")


def grid_index(position: Tensor, num_intervals: int) -> Tensor:
    """Return n in 1..N, int64: the upper end of the grid interval that holds `position` in [0, 1)."""
    return (position * num_intervals).floor().long().clamp(0, num_intervals - 1) + 1
