"""The algebra between kinds of prediction: each is a linear combination of x0 and eps, and so is x_t.

| kind   | meaning                  | defined                    |
|--------|--------------------------|----------------------------|
| `x0`   | the clean image          | `eps` from it: `sigma > 0` |
| `eps`  | the noise                | `x0` from it: `alpha > 0`  |
| `v`    | `alpha eps - sigma x0`   | everywhere                 |
| `flow` | `eps - x0`               | everywhere                 |

v is that of Salimans & Ho 2022. Coefficients are float64, one a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PredictionKind = Literal["x0", "eps", "v", "flow"]
Coefficient = Tensor | float


def product(a: Coefficient, b: Coefficient) -> Coefficient:
    """``a b`` where an exact 0 wins: a term that is not used must not turn an infinite partner into NaN."""
    if (isinstance(a, float) and a == 0.0) or (isinstance(b, float) and b == 0.0):
        return 0.0
    return a * b


def clean_and_noise(
    alpha: Tensor, sigma: Tensor, source: PredictionKind
) -> tuple[tuple[Coefficient, Coefficient], tuple[Coefficient, Coefficient]]:
    """Coefficients of x0 and of eps, each as (weight of x_t, weight of the prediction)."""
    match source:
        case "x0":
            return (0.0, 1.0), (1.0 / sigma, -alpha / sigma)
        case "eps":
            return (1.0 / alpha, -sigma / alpha), (0.0, 1.0)
        case "v":
            norm = alpha**2 + sigma**2
            return (alpha / norm, -sigma / norm), (sigma / norm, alpha / norm)
        case "flow":
            total = alpha + sigma
            return (1.0 / total, -sigma / total), (1.0 / total, alpha / total)
    raise ValueError(f"unknown prediction kind {source!r}; one of x0, eps, v, flow")


def weights_of(alpha: Tensor, sigma: Tensor, target: PredictionKind) -> tuple[Coefficient, Coefficient]:
    """The target kind as (weight of x0, weight of eps)."""
    match target:
        case "x0":
            return 1.0, 0.0
        case "eps":
            return 0.0, 1.0
        case "v":
            return -sigma, alpha
        case "flow":
            return -1.0, 1.0
    raise ValueError(f"unknown prediction kind {target!r}; one of x0, eps, v, flow")


def refuse_undefined(alpha: Tensor, sigma: Tensor, t: Tensor, source: PredictionKind) -> None:
    """Raise ValueError where a prediction does not fix x0 and eps; `t` on another device than the CPU is not read."""
    if t.device.type != "cpu":
        return
    if source == "eps" and bool((alpha == 0).any()):
        raise ValueError("an eps prediction says nothing about x0 where alpha is 0 (zero SNR); predict v or x0 there")
    if source == "x0" and bool((sigma == 0).any()):
        raise ValueError("an x0 prediction says nothing about eps where sigma is 0 (no noise)")


def combine(a: Coefficient, x: Tensor, b: Coefficient, y: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """``a x + b y`` for images and per-row coefficients, computed in at least float32, in ``dtype`` (default x's)."""
    compute = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    result = _rows(a, x, compute) * x.to(compute) + _rows(b, y, compute) * y.to(compute)
    return result.to(dtype if dtype is not None else x.dtype)


def _rows(coefficient: Coefficient, images: Tensor, dtype: torch.dtype) -> Coefficient:
    if isinstance(coefficient, float):
        return coefficient
    coefficient = coefficient.to(device=images.device, dtype=dtype)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (images.ndim - coefficient.ndim))
