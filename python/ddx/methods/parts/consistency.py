"""What consistency models on pairs of times share: the pair, its target and its distance, for any teacher.

f(x, t)  = x - t v(x, t)                                        at t = 0 it is x itself: the boundary is met
loss     = w(t, r) d( f(x_t, t), stop-gradient f_target(x_r, r) )                              r < t, on one path
d        = sqrt(mean |.|^2 + c^2) - c                           pseudo-Huber, or the mean square

Papers of this family count time in noise levels sigma / alpha (Karras et al. 2022), here `level`; t is flow time,
``level / (1 + level)``. Their constants are for data of standard deviation 0.5, and stand here for latents of 1:
levels are twice theirs (0.002 to 80 is 0.004 to 160), and a log-normal mean is log 2 above theirs. Their c grows as the
root of the dimensions, because their distance is no mean.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.device import send
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, NetworkSpec, Turn, student_and_target
from ddx.methods.parts.config import VelocityConfig, above_zero, at_least, within
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.path import path_velocity
from ddx.methods.parts.time_sampling import Times, grid_index, intervals_at

LARGEST_LEVEL = 160.0
SMALLEST_LEVEL = 0.004


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(VelocityConfig):
    """What the pairs of this family are weighed and measured by."""

    loss: str = option("huber", "distance between the two predictions", choices=("huber", "l2"))
    huber_c: float = option(0.00054, "the distance (RMS) where Huber's loss turns from square to linear")
    target_decay: float = option(0.0, "decay of the target, an average of the student; 0: the target is the student")
    pair_weight: str = option(
        "none",
        "weight of a pair: 1 / its difference in noise level, or in flow time",
        choices=("none", "level", "time"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "huber_c")
        within(self, 0.0, 1.0, "target_decay", open_end=True)


@dataclass(frozen=True, kw_only=True)
class GridConfig(ConsistencyConfig):
    """Pairs of neighbours on the grid of Karras et al. 2022. Uniform times are uniform over its intervals."""

    grid_steps: int = option(40, "number N of grid intervals at the end of the run")
    grid_steps_start: int | None = option(None, "N at the start of the run (none: constant)")
    grid_rho: float = option(7.0, "rho of the grid; 1: equal steps of noise level, larger: finer near the picture")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "grid_steps", "grid_steps_start")
        above_zero(self, "grid_rho")
        if self.grid_steps_start is not None and self.grid_steps_start > self.grid_steps:
            raise UsageError(
                f"grid_steps_start = {self.grid_steps_start} is above grid_steps = {self.grid_steps}",
                hint="leave it away, or raise --grid-steps",
            )


def level(t: Tensor) -> Tensor:
    """Return sigma / alpha of flow times, float64; at pure noise a little above the largest of the papers."""
    return t / (1.0 - t).clamp(min=1.0 / (1.0 + LARGEST_LEVEL))


def karras_grid(num_intervals: int, rho: float, *, t_min: float, t_max: float) -> Tensor:
    """Return the N + 1 flow times, float64, from the picture itself, 0, to the noisiest time.

    Between them are the noise levels whose roots of order rho are equally far from each other.
    """
    limits = torch.tensor([t_min, t_max], dtype=torch.float64)
    low, high = (level(limits).clamp(SMALLEST_LEVEL, LARGEST_LEVEL) ** (1.0 / rho)).tolist()
    levels = torch.linspace(low, high, num_intervals + 1, dtype=torch.float64) ** rho
    times = levels / (1.0 + levels)
    times[0], times[-1] = 0.0, t_max
    return times


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """Let what drops out inside drop out again in the next forward pass: inside, the generators only run ahead."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class ConsistencyMethod(FlowMethod):
    """A method that makes a student's clean predictions agree at two times of one path."""

    config: ConsistencyConfig

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the target unless the student is its own."""
        return student_and_target(self.config.target_decay)

    @abstractmethod
    def draw_pair(self, batch: Batch) -> tuple[Times, Tensor, Tensor]:
        """Return the draw, and the later and the earlier flow time of each row, float64 `[B]`."""

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the consistency loss of each row, and which rows were dropped."""
        student = networks[STUDENT]
        times, t, r = self.draw_pair(batch)
        guidance = self.draw_guidance(batch)
        noise = self.draw_noise(batch)
        x_t = self.noisy(batch.x0, noise, t)
        with torch.no_grad():
            x_r = self.earlier(x_t, t, r, noise, batch, guidance)
            with same_dropout(x_t.device):
                target = self.target(networks, x_t, x_r, t, r, batch, guidance)
        prediction = self.predict_x0(student, x_t, t, batch.condition, guidance)
        loss, dropped = self.distance(prediction, target, self.weight(t, r, batch))
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})

    def earlier(
        self, x_t: Tensor, t: Tensor, r: Tensor, noise: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return the state at r on the path through x_t: from data without guidance it has the same noise."""
        velocity = path_velocity(self.view, self.config.velocity_from, x_t, t, noise, batch, guidance)
        return x_t + rows(r - t, x_t) * velocity

    def target(
        self,
        networks: Mapping[str, nn.Module],
        x_t: Tensor,
        x_r: Tensor,
        t: Tensor,
        r: Tensor,
        batch: Batch,
        guidance: Tensor | float,
    ) -> Tensor:
        """Return what the prediction at (x_t, t) is to be: the one at (x_r, r)."""
        network = networks.get(TARGET, networks[STUDENT])
        return self.predict_x0(network, x_r, r, batch.condition, guidance)

    def distance(self, prediction: Tensor, target: Tensor, weight: Tensor) -> GuardedLoss:
        """Return the weighted distance of each row `[B]`, and which rows were dropped."""
        if self.config.loss == "l2":
            return guarded_consistency_loss(prediction, target, weight, c=None)
        squared, dropped = guarded_consistency_loss(prediction, target, c=None)
        c = self.config.huber_c
        return GuardedLoss(weight.to(squared) * squared / ((squared + c * c).sqrt() + c), dropped)

    def weight(self, t: Tensor, r: Tensor, batch: Batch) -> Tensor:
        """Return the weight of each pair, float64 `[B]`."""
        match self.config.pair_weight:
            case "level":
                return 1.0 / (level(t) - level(r))
            case "time":
                return 1.0 / (t - r)
        return torch.ones_like(t)


class GridMethod(ConsistencyMethod):
    """A consistency method whose pairs are neighbours on a grid, which may grow finer during the run."""

    config: GridConfig

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the start of a grid that grows finer."""
        return ("grid_steps_start",) if (self.config.grid_steps_start or math.inf) < self.config.grid_steps else ()

    def grid_steps_at(self, progress: float) -> int:
        """Return N at this share of the run: doubled at equal shares from the start to the end, if it is to grow."""
        return intervals_at(progress, self.config.grid_steps, self.config.grid_steps_start)

    def draw_pair(self, batch: Batch) -> tuple[Times, Tensor, Tensor]:
        """Return the interval of the grid that holds each drawn time."""
        times, number = self.draw_times(batch), self.grid_steps_at(batch.progress)
        grid = karras_grid(number, self.config.grid_rho, t_min=self.view.t_min, t_max=self.view.t_max)
        grid = send(grid, times.t.device)
        if self.config.time_sampling == "uniform":
            index = grid_index(times.quantile, number)
        else:
            index = torch.searchsorted(grid, times.t).clamp(1, number)
        return times, grid[index], grid[index - 1]
