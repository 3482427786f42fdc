"""What a regression counts: by noise level (min-SNR) and by scale of the picture.

Every weight stands for one on the error of x0. An error e of x0 is (alpha / sigma) e of eps, e / sigma of VP's v and
e / t of the flow velocity, so min-SNR's ``min(SNR, gamma)`` (Hang et al. 2023, arXiv:2303.09556), SNR = alpha^2 /
sigma^2, divided by the square of that is

x0  min(SNR, g)      eps  min(SNR, g) / SNR      v  min(SNR, g) / (SNR + 1)      flow  min((1 - t)^2, g t^2)

In the same way (1 - t)^2 on the error of the flow velocity is 1 on that of eps, and t^2 is 1 on that of x0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ddx.config import option
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.parts.config import above_zero
from ddx.process import PredictionKind

DENOISING_WEIGHTS = ("none", "min-snr", "eps", "x0")


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How a network that learns to denoise is weighed, mixed into settings; their __post_init__ calls this one."""

    denoising_weight: str = option(
        "none",
        "weight of a denoising loss by noise level, relative to the flow velocity's error; eps, x0: the error of that "
        "counts the same at all levels",
        choices=DENOISING_WEIGHTS,
    )
    min_snr_gamma: float = option(5.0, "gamma of min-SNR: the largest signal-to-noise ratio that counts")
    multi_scale: bool = option(False, "add denoising losses of the picture at half, a quarter, … of its size")

    def __post_init__(self) -> None:
        above_zero(self, "min_snr_gamma")


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


def denoising_weight(kind: str, t: Tensor, gamma: float) -> Tensor | None:
    """Return the weight of the squared error of the flow velocity at flow times t, float32 like t; None for 1."""
    match kind:
        case "none":
            return None
        case "eps":
            return (1.0 - t).square().float()
        case "x0":
            return t.square().float()
    return min_snr_weight(t, gamma).float()


def denoising_loss(
    config: DenoisingConfig, velocity: Tensor, target: Tensor, t: Tensor, kind: str | None = None
) -> GuardedLoss:
    """Return the loss of each row `[B]` for flow velocities `[B, C, h, w]` at flow times `[B]`, and what was dropped.

    `kind`: the weight by noise level (None: that of the settings).

    With scales (Hoogeboom et al. 2023) each one halves the last by means of 2 x 2 cells, down to an odd side, and
    counts half as much. Means leave the noise's share behind, so coarse structure keeps its say at high resolutions.
    """
    weight = denoising_weight(kind or config.denoising_weight, t, config.min_snr_gamma)
    loss, dropped = guarded_consistency_loss(velocity, target, weight, c=None)
    share, shares = 1.0, 1.0
    while config.multi_scale and not (velocity.shape[-1] % 2 or velocity.shape[-2] % 2):
        velocity, target = avg_pool2d(velocity, 2), avg_pool2d(target, 2)
        share = share / 2.0
        shares += share
        loss = loss + share * guarded_consistency_loss(velocity, target, weight, c=None).loss
    return GuardedLoss(loss / shares, dropped)
