"""What a regression counts: by noise level (min-SNR) and by scale of the picture.

Every weight stands for one on the error of x0. An error e of x0 is (alpha / sigma) e of eps, e / sigma of VP's v and
e / t of the flow velocity, so min-SNR's ``min(SNR, gamma)`` (Hang et al. 2023, arXiv:2303.09556), SNR = alpha^2 /
sigma^2, divided by the square of that is

x0  min(SNR, g)      eps  min(SNR, g) / SNR      v  min(SNR, g) / (SNR + 1)      flow  min((1 - t)^2, g t^2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.process import PredictionKind


def min_snr_weight(t: Tensor, gamma: float, kind: PredictionKind = "flow") -> Tensor:
    """Return the weight of the squared error of `kind` at flow times t in (0, 1], float64, the shape of t.

    Of eps at t = 1 it is 1: there eps says nothing about the picture, see :meth:`ddx.process.Process.convert`.
    """
    alpha, sigma = 1.0 - t.double(), t.double()
    match kind:
        case "flow":
            return torch.minimum(alpha**2, gamma * sigma**2)
        case "x0":
            return torch.minimum((alpha / sigma) ** 2, torch.full_like(alpha, gamma))
        case "eps":
            return torch.minimum(torch.ones_like(alpha), gamma * (sigma / alpha) ** 2)
    # VP scales the state to alpha^2 + sigma^2 = 1
    return torch.minimum(alpha**2, gamma * sigma**2) / (alpha**2 + sigma**2)


def multi_scale_mean_square(difference: Tensor) -> Tensor:
    """Return the mean square of each row `[B]` of `[B, C, h, w]`, averaged over scales (Hoogeboom et al. 2023).

    Each scale halves the last one by means of 2 x 2 cells, down to one side of 1 or an odd one, and counts half as
    much. Means leave the noise's share behind, so coarse structure keeps its say at high resolutions.
    """
    total, weight, weights = difference.new_zeros(len(difference)), 1.0, 0.0
    while True:
        total = total + weight * difference.square().flatten(1).mean(1)
        weights += weight
        if difference.shape[-1] % 2 or difference.shape[-2] % 2:
            return total / weights
        difference, weight = torch.nn.functional.avg_pool2d(difference, 2), weight / 2.0
