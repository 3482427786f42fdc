"""The gate that a sample must pass.

It is held to each mode by itself, because a global distance is blind to blurred modes, to modes without width, and to
mass on the bridges between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import Mixture

MAX_OFF_MODE, MAX_ERROR = 0.01, 0.10


@dataclass(frozen=True)
class Modes:
    """What the modes of a sample should be, float64. means: `[M, D]`; stds and shares: `[M]`."""

    means: Tensor
    stds: Tensor
    shares: Tensor

    @classmethod
    def of(cls, mixture: Mixture) -> Modes:
        """Return those of the whole mixture."""
        num_modes = len(mixture.means)
        even = torch.ones(num_modes, dtype=torch.float64)
        return cls(mixture.means, even * mixture.std, even / num_modes)

    @classmethod
    def measured(cls, points: Tensor, mixture: Mixture) -> Modes:
        """Return those of points `[N, D]`, each of which belongs to the mode of the mixture that is nearest to it."""
        points = points.double()
        mode = torch.cdist(points, mixture.means).argmin(1)
        own = [points[mode == index] for index in range(len(mixture.means))]
        means = torch.stack([some.mean(0) for some in own])
        stds = torch.stack([(some - mean).square().mean().sqrt() for some, mean in zip(own, means, strict=True)])
        return cls(means, stds, torch.bincount(mode, minlength=len(own)).double() / len(points))


@dataclass(frozen=True)
class Gate:
    """How far a sample is from its modes: mass further than 4 std from every mode, and the worst mode's errors."""

    off_mode: float
    worst_std: float  # relative, in more than two dimensions towards the other modes too
    worst_share: float  # relative

    @property
    def passed(self) -> bool:
        """At most 1 % of the mass off the modes, widths and shares within 10 %."""
        return self.off_mode <= MAX_OFF_MODE and self.worst_std <= MAX_ERROR and self.worst_share <= MAX_ERROR


def gate(points: Tensor, modes: Modes) -> Gate:
    """Return the gate's measures for points `[N, D]` that are to be drawn from all of the modes."""
    points, dimensions = points.double(), points.shape[1]
    nearest, mode = torch.cdist(points, modes.means).min(dim=1)
    # in D dimensions a normal point is about sqrt(D) std away: 4 std of the plane hold as much as this
    on = nearest <= modes.stds[mode] * (4.0 + math.sqrt(dimensions) - math.sqrt(2.0))
    stds: list[float] = []
    shares: list[float] = []
    for index, mean in enumerate(modes.means):
        own = points[on & (mode == index)] - mean
        shares.append(len(own) / len(points) / float(modes.shares[index]))
        others = torch.cat([modes.means[:index], modes.means[index + 1 :]]) - mean
        stds.extend((_widths(own, others) / modes.stds[index]).tolist() if len(own) else [0.0])
    return Gate(
        off_mode=float((~on).double().mean()),
        worst_std=max(abs(std - 1) for std in stds),
        worst_share=max(abs(share - 1) for share in shares),
    )


def _widths(own: Tensor, others: Tensor) -> Tensor:
    """Return the root mean square of a mode's points `[N, D]` over all dimensions, and in more than two also over the
    directions to the other modes `[M - 1, D]`: what lies on bridges to them is lost among sixteen. All from its mean.
    """
    width = own.square().mean().sqrt()
    if own.shape[1] == 2:
        return width[None]
    return torch.stack([width, (own @ nn.functional.normalize(others, dim=1).T).square().mean().sqrt()])
