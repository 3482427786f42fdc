"""Ground one: a mixture whose velocity is known in closed form, and the gate that a student of it must pass.

Eight Gaussian modes on a circle under the flow process. A sample is held to each mode by itself, because a global
distance is blind to blurred modes, to modes without width, and to mass on the bridges between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_MODES, RADIUS, STD = 8, 1.5, 0.1
ANGLES = 2 * math.pi * torch.arange(NUM_MODES) / NUM_MODES
MEANS = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def draw_data(count: int, generator: torch.Generator) -> Tensor:
    modes = torch.randint(NUM_MODES, (count,), generator=generator)
    return MEANS[modes] + STD * torch.randn(count, 2, generator=generator)


class ExactVelocity(nn.Module):
    """E[eps - x0 | x_t] of the mixture, for x `[B, 2]` and t `[B]`."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, t = x.double(), t.double()[:, None]
        variance = (1 - t) ** 2 * STD**2 + t**2  # [B, 1]
        apart = x[:, None, :] - (1 - t)[:, :, None] * MEANS.double()  # [B, modes, 2]
        weight = torch.softmax(-apart.square().sum(-1) / (2 * variance), dim=1)[:, :, None]
        x0 = MEANS.double() + ((1 - t) * STD**2 / variance)[:, :, None] * apart
        eps = (t / variance)[:, :, None] * apart
        return (weight * (eps - x0)).sum(1).float()


@dataclass(frozen=True)
class Gate:
    """How far a sample is from the mixture: mass further than 4 std from every mode, and the worst mode's errors."""

    off_mode: float
    worst_std: float  # relative
    worst_share: float  # relative

    @property
    def passed(self) -> bool:
        return self.off_mode <= 0.01 and self.worst_std <= 0.10 and self.worst_share <= 0.10


def gate(points: Tensor) -> Gate:
    distances = torch.cdist(points.double(), MEANS.double())
    nearest, mode = distances.min(dim=1)
    on = nearest <= 4 * STD
    stds, shares = [], []
    for index in range(NUM_MODES):
        own = points[on & (mode == index)].double()
        shares.append(len(own) / len(points))
        stds.append(float((own - MEANS[index].double()).square().mean().sqrt()) if len(own) else 0.0)
    return Gate(
        off_mode=float((~on).double().mean()),
        worst_std=max(abs(std / STD - 1) for std in stds),
        worst_share=max(abs(share * NUM_MODES - 1) for share in shares),
    )
