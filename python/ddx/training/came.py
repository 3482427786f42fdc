"""CAME: confidence-guided adaptive memory-efficient optimisation (Luo et al. 2023, arXiv:2307.02047).

    row, col  means of g^2 + eps_1 over a matrix's columns and rows, averaged with decay beta_2
    u         g / sqrt(row col / mean(row)),  divided by max(1, RMS(u) / clip)
    m         average of u with decay beta_1
    U         as row and col, of (u - m)^2 + eps_2, with decay beta_3
    step      -rate m / sqrt(U)

A matrix of [n, m] keeps n + m numbers for each of the two squares, where Adam keeps n m. As in the optimiser that
SANA-Sprint is trained with (NVlabs/Sana, diffusion/utils/optimizer.py, CAMEWrapper), kernels of 1x1 convolutions are
matrices; what is no matrix keeps its whole square, and steps along m.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddx.training.spread_tensors import local, share_beside, spread_beside, summed


class CAME(Optimizer):
    """CAME with decoupled weight decay."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        epsilons: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"betas": betas, "epsilons": epsilons, "clip": clip}
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter, local(parameter.grad).float(), group)
                    share = local(parameter)
                    share.mul_(1.0 - group["lr"] * group["weight_decay"])
                    share.add_(direction.view_as(share), alpha=-group["lr"])

    def _direction(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Return what is to be subtracted from this rank's share of a parameter, and move its averages on."""
        mean_decay, square_decay, doubt_decay = group["betas"]
        matrix = _is_matrix(parameter)
        gradient = gradient.flatten(1) if matrix else gradient
        update = gradient * self._scale(
            parameter, "exp_avg_sq", gradient.square() + group["epsilons"][0], square_decay, matrix
        )
        square = summed(update.square().sum(), [parameter]) / parameter.numel()
        update /= (square.sqrt() / group["clip"]).clamp(min=1.0)
        mean = self._moved(parameter, "exp_avg", update, 1.0 - mean_decay)
        if not matrix:
            return mean
        doubt = (update - mean).square() + group["epsilons"][1]
        return mean * self._scale(parameter, "exp_avg_res", doubt, doubt_decay, matrix)

    def _scale(self, parameter: Tensor, name: str, square: Tensor, decay: float, matrix: bool) -> Tensor:
        """Return one over the root of the average square; of a matrix [n, m] from averages of its rows and columns."""
        if not matrix:
            return self._moved(parameter, name, square, 1.0 - decay).rsqrt()
        rows = parameter.shape[0]
        row = self._moved(parameter, f"{name}_row", square.mean(1), 1.0 - decay)
        column = self._moved(parameter, f"{name}_col", summed(square.sum(0), [parameter]) / rows, 1.0 - decay)
        mean = summed(row.sum(), [parameter]) / rows
        return (row / mean).rsqrt()[:, None] * column.rsqrt()

    def _moved(self, parameter: Tensor, key: str, value: Tensor, weight: float) -> Tensor:
        """Return this rank's share of an average, moved towards a value; all of it, of the columns of a matrix."""
        state = self.state[parameter]
        everywhere = key.endswith("_col")
        if key not in state:
            zeros = torch.zeros_like(value)
            state[key] = zeros if everywhere else share_beside(zeros, parameter)
        elif not everywhere:
            state[key] = spread_beside(state[key], parameter)  # one that was restored may be whole
        average: Tensor = local(state[key]).lerp_(value, weight)
        return average


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[2:] == (1, 1))
