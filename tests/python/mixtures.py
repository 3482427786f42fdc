"""Ground one: a teacher whose velocity is known in closed form, a small student, and the gate that one must pass.

Eight Gaussian modes on a circle under the flow process. A sample is held to each mode by itself, because a global
distance is blind to blurred modes, to modes without width, and to mass on the bridges between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddx.methods.base import Batch
from ddx.process import FlowProcess
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition

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


class SmallStudent(nn.Module):
    """A perceptron over the point and Fourier features of point and time."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("directions", 2.0 * torch.randn(3, 32, generator=generator))
        layers: list[nn.Module] = [nn.Linear(3 + 64, width), nn.SiLU()]
        for _ in range(3):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        point = torch.cat([x, t.float()[:, None]], dim=1)
        angles = point @ self.directions
        output: Tensor = self.layers(torch.cat([point, angles.sin(), angles.cos()], dim=1))
        return output


class MixtureTeacher(Teacher):
    """The exact mixture behind the contract of a teacher. Latents are points `[B, 2]`; there is no text."""

    def __init__(self) -> None:
        self.process = FlowProcess()
        self.prediction = "flow"
        self.default_guidance = 1.0
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._exact = ExactVelocity()

    def network(self) -> nn.Module:
        return self._exact

    def new_student_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return SmallStudent()

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output: Tensor = network(x_t, t)
        return output

    def guided(self, network: nn.Module, x_t: Tensor, t: Tensor, *unused: Any) -> Tensor:
        return self.predict(network, x_t, t, unused[0])

    def _no(self, *arguments: Any) -> Any:
        raise NotImplementedError("a mixture has no pictures and no text")

    compression = property(_no)  # type: ignore[assignment]
    resolution_multiple = property(_no)  # type: ignore[assignment]
    _encode_pixels = encode_text = null_condition = _text_fingerprint = _no
    time_embedding_linear = sampling_scheduler = student_scheduler = _no


class OneGenerator:
    """The random numbers of a batch from one generator: nothing here runs on several ranks, and it is quicker."""

    def __init__(self, seed: int, count: int) -> None:
        self.generator, self.count = torch.Generator().manual_seed(seed), count

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)

    def uniform(self) -> Tensor:
        return torch.rand(self.count, generator=self.generator, dtype=torch.float64)


def make_point_batch(step: int, count: int, progress: float) -> Batch:
    draws: Any = OneGenerator(2 * step, count)
    nothing = Condition(torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool))
    x0 = draw_data(count, torch.Generator().manual_seed(2 * step + 1))
    return Batch(x0=x0, condition=nothing, null=nothing.index(0), draws=draws, step=step, progress=progress)


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
