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
                    direction = self._direction(parameter, parameter.grad.float(), group)
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.view_as(parameter), alpha=-group["lr"])

    def _direction(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Return what is to be subtracted from a parameter, and move its averages on."""
        state, (mean_decay, square_decay, doubt_decay) = self.state[parameter], group["betas"]
        matrix = _is_matrix(parameter)
        gradient = gradient.flatten(1) if matrix else gradient
        update = gradient * self._scale(state, "exp_avg_sq", gradient.square() + group["epsilons"][0], square_decay)
        update /= (update.square().mean().sqrt() / group["clip"]).clamp(min=1.0)
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(update)
        mean: Tensor = state["exp_avg"].lerp_(update, 1.0 - mean_decay)
        if not matrix:
            return mean
        doubt = (update - mean).square() + group["epsilons"][1]
        return mean * self._scale(state, "exp_avg_res", doubt, doubt_decay)

    @staticmethod
    def _scale(state: dict[str, Any], name: str, square: Tensor, decay: float) -> Tensor:
        """Return one over the root of the average square; of a matrix [n, m] from averages of its rows and columns."""
        averages: dict[str, Tensor] = {name: square}
        if square.ndim == 2:
            averages = {f"{name}_row": square.mean(1), f"{name}_col": square.mean(0)}
        for key, value in averages.items():
            if key not in state:
                state[key] = torch.zeros_like(value)
            averages[key] = state[key].lerp_(value, 1.0 - decay)
        if square.ndim != 2:
            whole: Tensor = averages[name].rsqrt()
            return whole
        row, column = averages.values()
        product: Tensor = (row / row.mean()).rsqrt()[:, None] * column.rsqrt()
        return product


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[2:] == (1, 1))
