"""How training times are drawn: monotone maps from a uniform number to a time, 1 being noise.

They act on the uniform numbers that belong to the rows, so that a draw is the same on any number of ranks. A position
on [0, 1) is a flow time, sigma / (alpha + sigma), whose logit is log(sigma / alpha): so the logit-normal times of Esser
et al. 2024 and the log-normal noise levels of Karras et al. 2022 are one distribution under two names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddx.device import send
from ddx.methods.parts.config import TimeConfig


def uniform(u: Tensor) -> Tensor:
    """Return `u` itself."""
    return u


def logit_normal(u: Tensor, *, mean: float, std: float) -> Tensor:
    """Return positions whose logit is normal, float64, the shape of `u` in [0, 1)."""
    inside = u.double().clamp(1e-9, 1.0 - 1e-9)
    return torch.sigmoid(mean + std * torch.special.ndtri(inside))


def shifted(u: Tensor, *, shift: float) -> Tensor:
    """Return `k u / (1 + (k - 1) u)`: for k > 1 more mass near noise (Esser et al. 2024)."""
    u = u.double()
    return shift * u / (1.0 + (shift - 1.0) * u)


def sample_positions(
    u: Tensor, *, kind: str, mean: float = 0.0, std: float = 1.0, shift: float = 1.0, levels: int = 1
) -> Tensor:
    """Return positions in [0, 1] float64 for uniform `u`, by the `kind` of distribution: its name in the configs."""
    match kind:
        case "uniform":
            return uniform(u)
        case "logit-normal" | "log-normal":
            return logit_normal(u, mean=mean, std=std)
        case "shifted" | "auto":
            return shifted(u, shift=shift)
        case "grid":
            return grid_index(u, levels) / levels
    raise ValueError(f"unknown time sampling {kind!r}")


def grid_index(position: Tensor, num_intervals: int) -> Tensor:
    """Return n in 1..N, int64: the upper end of the grid interval that holds `position` in [0, 1)."""
    return (position * num_intervals).floor().long().clamp(0, num_intervals - 1) + 1


def intervals_at(progress: float, final: int, start: int | None) -> int:
    """Return the number of grid intervals at this share of the run: `start`, doubled at equal shares up to `final`."""
    if start is None or start >= final:
        return final
    stages = [start]
    while stages[-1] < final:
        stages.append(min(2 * stages[-1], final))
    return stages[min(int(progress * len(stages)), len(stages) - 1)]


def sample_times(u: Tensor, config: TimeConfig, *, t_min: float, t_max: float) -> Tensor:
    """Return flow times in [t_min, t_max], float64, the shape of `u`, as `config` says.

    Uniform, shifted and grid times cover the range; normal ones and those of a set are cut to it.
    """
    match config.time_sampling:
        case "set":
            times = send(torch.tensor(sorted(config.time_set), dtype=torch.float64), u.device)
            return times[grid_index(u, len(times)) - 1].clamp(t_min, t_max)
        case "logit-normal" | "log-normal":
            return logit_normal(u, mean=config.time_mean, std=config.time_std).clamp(t_min, t_max)
    positions = sample_positions(u, kind=config.time_sampling, shift=config.time_shift, levels=config.time_levels)
    return t_min + (t_max - t_min) * positions.double()


def student_t_quantiles(
    low: float, high: float, *, mean: float, std: float, freedom: float, number: int = 65536
) -> Tensor:
    """Return evenly spaced quantiles, from `low` to `high`, of Student's t distribution cut to that range.

    Float64 `[number]`, on the CPU. `mean` and `std` are the location and the scale, `freedom` the degrees of freedom.
    Between neighbours a straight line is right to 1e-8 of the range for the published log-Student-t (Lee et al. 2024).
    """
    from scipy.special import stdtr, stdtrit

    below, above = (stdtr(freedom, (end - mean) / std) for end in (low, high))
    shares = torch.linspace(float(below), float(above), number, dtype=torch.float64)
    found = mean + std * torch.from_numpy(stdtrit(freedom, shares.numpy()))
    found[0], found[-1] = low, high  # a rounded share may be past the end
    return found.clamp(low, high)


def at_quantile(u: Tensor, quantiles: Tensor) -> Tensor:
    """Return the values at `u` in [0, 1], float64, the shape of `u`, on straight lines between even quantiles `[N]`."""
    position = u.double() * (len(quantiles) - 1)
    index = position.floor().long().clamp(0, len(quantiles) - 2)
    return torch.lerp(quantiles[index], quantiles[index + 1], position - index)


@dataclass(frozen=True)
class Times:
    """The times of a batch. t: flow times float64 `[B]`; `weigh` must see their losses."""

    t: Tensor
    quantile: Tensor  # where each time is in the distribution that the method asks for, float64 [B]
    weight: Tensor  # importance weights, float32 [B]: 1 unless the sampling adapts
    note: Callable[[Tensor, Tensor], None] | None = None

    def weigh(self, loss: Tensor) -> Tensor:
        """Return the loss of each row `[B]` with its importance weight; an adaptive sampler takes note of it."""
        if self.note is None:
            return loss
        self.note(self.quantile, loss.detach())
        return loss * self.weight


class AdaptiveTimes:
    """A running histogram of the loss over the quantiles of the method's own time distribution.

    Quantiles are drawn in proportion to the mean loss of their bin, `floor` of them evenly, and weighted by the inverse
    of that density: the expected loss and gradient stay what the method defines, with less variance where the loss is
    uneven. Losses are collected during a step and counted at its end, over all ranks, so every row of a step is drawn
    from one density.
    """

    def __init__(
        self,
        num_bins: int = 32,
        *,
        decay: float = 0.99,
        floor: float = 0.2,
        device: torch.device | str = "cpu",
    ) -> None:
        self.decay, self.floor = decay, floor
        self.sums = torch.zeros(2, num_bins, dtype=torch.float64, device=device)  # decayed loss and count
        self._pending = torch.zeros_like(self.sums)

    def density(self) -> Tensor:
        """Return the density of each bin, float64 `[bins]`, whose mean is 1: even until every bin has been seen."""
        loss, count = self.sums
        mean = loss / count
        density = self.floor + (1.0 - self.floor) * mean / mean.mean()
        known = (count > 0.0).all() & (loss.sum() > 0.0)  # no host waits for it
        return torch.where(known, density, torch.ones_like(density))

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantiles float64 and their importance weights float32 for uniform numbers, both `[B]`."""
        density = self.density()
        edges = torch.cat([density.new_zeros(1), density.cumsum(0)]) / density.sum()
        index = (torch.searchsorted(edges, u.double(), right=True) - 1).clamp(0, len(density) - 1)
        inside = (u.double() - edges[index]) / (edges[index + 1] - edges[index])
        return (index + inside.clamp(0.0, 1.0)) / len(density), (1.0 / density[index]).float()

    def note(self, quantile: Tensor, loss: Tensor) -> None:
        """Take down the unweighted loss of rows, both `[B]`; those that are not finite are left out."""
        loss, finite = loss.detach().double().abs(), torch.isfinite(loss)
        index = (quantile * self.sums.shape[1]).long().clamp(0, self.sums.shape[1] - 1)
        self._pending[0].index_add_(0, index, torch.where(finite, loss, 0.0))
        self._pending[1].index_add_(0, index, finite.double())

    def end_step(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Count what was noted; `mean` averages a tensor over the ranks."""
        self.sums.mul_(self.decay).add_(mean(self._pending))
        self._pending.zero_()
