"""The networks of a mixture: its formula, the small MLP that students are, and what shows that MLP's features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import Mixture
from ddx.teachers.features import as_map, outputs_of


class Formula(nn.Module, ABC):
    """A network that is known: `predict` of the teacher asks it for the picture itself."""

    @abstractmethod
    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """Return E[x0 | x] float64 `[B, D]` at ``x = alpha x0 + sigma eps``; alpha, sigma float64 `[B]`."""


class Exact(Formula):
    """The mixture's own denoiser."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """See :meth:`Mixture.x0`."""
        return self.mixture.x0(x, alpha, sigma, classes)


class MLP(nn.Module):
    """A residual MLP on (x, angle, class) whose time embedding ends in a linear, as a diffusers denoiser's does.

    A few waves of x, and those of its direction, and rectified units, because the map from noise to modes
    has edges: with smooth units and plain x even regression on exact pairs leaves a quarter of the mass between the
    modes, and without the direction no student's modes came closer than 15 % to their width.
    """

    def __init__(self, dimensions: int, num_classes: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(1, 9, dtype=torch.float32), persistent=False)
        self.time_hidden = nn.Linear(18, width)
        self.time_last = nn.Linear(width, width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.num_directions = 12 if dimensions == 2 else 0
        num_waves = 7 * dimensions + 2 * self.num_directions if dimensions == 2 else 13 * dimensions
        self.inside = nn.Linear(num_waves, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.outside = nn.Linear(width, dimensions)

    def forward(self, x: Tensor, angle: Tensor, classes: Tensor) -> Tensor:
        """Return `[B, D]` for x `[B, D]`, angles float `[B]` (negative ones are another model) and classes `[B]`."""
        wave = angle[:, None].to(x.dtype) * cast(Tensor, self.frequencies).to(x.dtype)
        sign = (angle[:, None] < 0).to(x.dtype)
        features = torch.cat([wave.sin(), wave.cos(), angle[:, None].to(x.dtype), sign], dim=1)
        context = self.time_last(nn.functional.silu(self.time_hidden(features))) + self.label(classes)
        hidden = self.inside(torch.cat([x, *_waves(x), *self._directions(x)], dim=1))
        for block in self.blocks:
            hidden = hidden + block(hidden + context)
        output: Tensor = self.outside(hidden)
        return output

    def _directions(self, x: Tensor) -> list[Tensor]:
        """Return waves of the direction of x: cos(k a) and sin(k a) of its angle a in the plane for k = 1, 2, …, each
        `[B, 1]`; in more dimensions those of x at unit root mean square.
        """
        if not self.num_directions:
            return _waves(x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt())
        cos, sin = (x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt()).split(1, dim=1)
        found, (real, imaginary) = [cos, sin], (cos, sin)
        for _ in range(self.num_directions - 1):
            real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
            found += [real, imaginary]
        return found


def _waves(x: Tensor) -> list[Tensor]:
    """Return three waves of every coordinate, each `[B, D]`."""
    return [wave(k * x) for k in (1.0, 2.0, 4.0) for wave in (torch.sin, torch.cos)]


class PointEncoder(nn.Module):
    """An autoencoder's encoder for points, which are their own pictures: the MLP as it sees them without noise.

    Adversarial methods that judge pictures look at the outputs of ``encoder.down_blocks``, here `[B, width, 1, 1]`.
    """

    def __init__(self, network: MLP) -> None:
        super().__init__()
        self.encoder = _Encoder(network)


class _Encoder(nn.Module):
    def __init__(self, network: MLP) -> None:
        super().__init__()
        self.network = network
        self.down_blocks = nn.ModuleList(_Shown() for _ in network.blocks)

    def forward(self, points: Tensor) -> Tensor:
        """Return the points `[B, D, 1, 1]`, having shown what each block makes of them."""
        with outputs_of(self.network.blocks) as found:
            self.network(points.flatten(1), points.new_zeros(len(points)), self.classes(points))
        for block, value in zip(self.down_blocks, found, strict=True):
            block(as_map(value, points))
        return points

    def classes(self, points: Tensor) -> Tensor:
        """Return the class of all modes for each point."""
        return torch.full((len(points),), self.network.label.num_embeddings - 1, device=points.device)


class _Shown(nn.Module):
    def forward(self, feature: Tensor) -> Tensor:
        """Return the feature: hooks see it."""
        return feature
