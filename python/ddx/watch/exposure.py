"""Exposure bias: how far the noisy states that a student meets when it draws are from those that it is trained on.

Behind its first step a student is at x_r = (1 - r) x̂0 + r eps, of its own picture x̂0; trained it is on the x_r of
pictures x0. Of both, mean and variance of each channel give the 2-Wasserstein distance of two Gaussians, here relative
to the standard deviation of the states that it is trained on:

    d^2 = mean_c [(m̂_c - m_c)^2 + (ŝ_c - s_c)^2] / mean_c s_c^2,   s_c^2 = (1 - r)^2 var_c(x0) + r^2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddx.methods.base import Method


def exposure_bias(method: Method, drawn: Tensor, pictures: Tensor, num_steps: int) -> float | None:
    """Return d at the second of `num_steps` steps; None of one step, and of methods whose first step is another one.

    drawn: what the student draws in one step, float32 `[N, C, h, w]`; pictures: latents like those that it is trained
    on, of the same shape, here the teacher's.
    """
    student_times: Any = getattr(method, "student_times", None)
    if num_steps < 2 or student_times is None or method.folded_steps:
        return None
    return distance_at(float(student_times(num_steps)[1]), drawn, pictures)


def distance_at(r: float, drawn: Tensor, pictures: Tensor) -> float:
    """Return d at flow time `r`, of latents `[N, C, h, w]`."""
    (m1, v1), (m2, v2) = (_moments(values) for values in (drawn, pictures))
    mean1, mean2 = (1.0 - r) * m1, (1.0 - r) * m2
    std1, std2 = (((1.0 - r) ** 2 * v + r**2).sqrt() for v in (v1, v2))
    squared = (mean1 - mean2).square() + (std1 - std2).square()
    return float((squared.mean() / std2.square().mean()).sqrt())


def _moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    values = latents.double()
    return values.mean(dim=(0, 2, 3)), torch.var(values, dim=(0, 2, 3), correction=0)
