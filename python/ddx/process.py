"""Forward processes in float64 and the conversions between prediction kinds.

Every family that ddx distils is ``x_t = alpha(t) x0 + sigma(t) eps`` for one pair of coefficients. A
network predicts one linear combination of ``x0`` and ``eps``; together with ``x_t`` that fixes both, so
each kind converts to each other one through the process.

| kind   | meaning                  | defined                    |
|--------|--------------------------|----------------------------|
| `x0`   | the clean image          | `eps` from it: `sigma > 0` |
| `eps`  | the noise                | `x0` from it: `alpha > 0`  |
| `v`    | `alpha eps - sigma x0`   | everywhere                 |
| `flow` | `eps - x0`               | everywhere                 |

Times and coefficients are float64; images keep their dtype. Kingma et al. 2021 (VP), Salimans & Ho 2022
(v), Lipman et al. 2023 and Liu et al. 2022 (flow), Karras et al. 2022 (EDM).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PredictionKind = Literal["x0", "eps", "v", "flow"]


class Process(ABC):
    """One forward process. ``t`` is a float64 tensor ``[B]`` (or ``[]``), larger is noisier."""

    name: str
    num_train_timesteps: int
    t_min: float = 0.0
    t_max: float

    @abstractmethod
    def angle(self, t: Tensor) -> Tensor:
        """``atan2(sigma, alpha)`` in [0, pi/2], float64, strictly growing with ``t``.

        The angle is how two processes are matched: it is finite at both ends, where ``sigma / alpha`` is not.
        """

    @abstractmethod
    def time_at(self, angle: Tensor) -> Tensor:
        """The time (float64) whose noise-to-signal angle is ``angle``; the inverse of :meth:`angle`."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The coefficient of the clean image, float64, the shape of ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The coefficient of the noise, float64, the shape of ``t``."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """What the family's network is fed for ``t``, float64."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``alpha x0 + sigma noise`` in the dtype of ``x0``. Images ``[B, ...]``, ``t`` ``[B]``."""
        return _combine(self.alpha(t), x0, self.sigma(t), noise)

    def convert(
        self, prediction: Tensor, x_t: Tensor, t: Tensor, source: PredictionKind, target: PredictionKind
    ) -> Tensor:
        """The ``target`` kind of a prediction of the ``source`` kind at ``(x_t, t)``, in the prediction's dtype.

        Raises ValueError where the result does not exist: from ``eps`` where alpha is 0 (zero terminal SNR), and
        from ``x0`` where sigma is 0. The check reads ``t`` only when it is on the CPU, so it never stalls a GPU;
        there the result is not finite.
        """
        if source == target:
            return prediction
        alpha, sigma = self.alpha(t), self.sigma(t)
        _refuse_undefined(alpha, sigma, t, source)
        (x0_x, x0_p), (eps_x, eps_p) = _solve(alpha, sigma, source)
        # the target is x0_weight * x0 + eps_weight * eps, and both are a * x_t + b * prediction
        x0_weight, eps_weight = _weights(alpha, sigma, target)
        from_x = _times(x0_weight, x0_x) + _times(eps_weight, eps_x)
        from_p = _times(x0_weight, x0_p) + _times(eps_weight, eps_p)
        return _combine(from_x, x_t, from_p, prediction, dtype=prediction.dtype)

    def solver_step(self, prediction: Tensor, x_t: Tensor, t: Tensor, r: Tensor, kind: PredictionKind) -> Tensor:
        """``alpha(r) x0 + sigma(r) eps`` with both read off the prediction at ``t``: the state at time ``r``.

        This is DDIM without noise (Song et al. 2021); for the flow process it is the Euler step
        ``x_t + (r - t) v``. Same shapes and errors as :meth:`convert`; the dtype of ``x_t``.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        _refuse_undefined(alpha, sigma, t, kind)
        (x0_x, x0_p), (eps_x, eps_p) = _solve(alpha, sigma, kind)
        alpha_r, sigma_r = self.alpha(r), self.sigma(r)
        return _combine(
            _times(alpha_r, x0_x) + _times(sigma_r, eps_x),
            x_t,
            _times(alpha_r, x0_p) + _times(sigma_r, eps_p),
            prediction,
            dtype=x_t.dtype,
        )

    def flow_time(self, t: Tensor) -> Tensor:
        """``sigma / (alpha + sigma)`` in [0, 1], float64: where the flow process has the same ratio.

        There ``x_t / (alpha + sigma)`` moves with the slope ``eps - x0``, so one linear multistep rule on the
        ``flow`` prediction serves every process.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        return sigma / (alpha + sigma)

    def position(self, t: Tensor) -> Tensor:
        """Where a few-step sampler of this family has ``t``, float64: 1 at its start, 0 at the clean image.

        Equal steps of the sampler are equal steps of position.
        """
        return t.double() / self.t_max

    def time_of_position(self, position: Tensor) -> Tensor:
        """The inverse of :meth:`position`."""
        return position.double() * self.t_max

    def match(self, other: Process, t: Tensor) -> Tensor:
        """The time of this process with the signal-to-noise ratio that ``other`` has at ``t``, float64."""
        return self.time_at(other.angle(t))


class FlowProcess(Process):
    """Rectified flow: ``alpha = 1 - t``, ``sigma = t``, t in [0, 1]; networks are fed ``1000 t``."""

    name = "flow"
    num_train_timesteps = 1000
    t_max = 1.0

    def angle(self, t: Tensor) -> Tensor:
        """``atan2(t, 1 - t)``."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def time_at(self, angle: Tensor) -> Tensor:
        """``sin / (sin + cos)``."""
        sin, cos = torch.sin(angle.double()), torch.cos(angle.double())
        return sin / (sin + cos)

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1.0 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t.double()

    def model_time(self, t: Tensor) -> Tensor:
        """``1000 t``."""
        return t.double() * self.num_train_timesteps

    @staticmethod
    def shift(t: Tensor, shift: float) -> Tensor:
        """``k t / (1 + (k - 1) t)`` for k = ``shift``: multiplies the SNR by ``1 / k**2`` (Hoogeboom et al. 2023)."""
        t = t.double()
        return shift * t / (1.0 + (shift - 1.0) * t)


class VPProcess(Process):
    """Variance preserving, from a DDPM table; ``t`` is a float timestep in [0, T - 1].

    Between two table entries the angle ``atan2(sigma, alpha)`` is interpolated linearly, so integer times give
    the table exactly and a table that ends at zero SNR (Lin et al. 2024) stays finite. Note that t = 0 is the
    table's first entry, which still carries a little noise.
    """

    name = "vp"

    def __init__(
        self, betas: Sequence[float] | Tensor | None = None, *, alphas_cumprod: Sequence[float] | Tensor | None = None
    ) -> None:
        """Takes the betas ``[T]``, or the cumulated ``alphas_cumprod`` ``[T]`` in [0, 1], strictly falling."""
        if (betas is None) == (alphas_cumprod is None):
            raise ValueError("VPProcess takes either betas or alphas_cumprod")
        if betas is not None:
            table = torch.cumprod(1.0 - torch.as_tensor(betas, dtype=torch.float64), dim=0)
        else:
            table = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        table = table.detach().cpu()
        if table.ndim != 1 or len(table) < 2 or not bool((table.diff() < 0).all()):
            raise ValueError(f"alphas_cumprod must fall strictly over at least 2 steps, got shape {tuple(table.shape)}")
        if not 0.0 <= float(table[-1]) < float(table[0]) <= 1.0:
            raise ValueError(f"alphas_cumprod must lie in [0, 1], got {float(table[0])} to {float(table[-1])}")
        self.alphas_cumprod = table
        self.num_train_timesteps = len(table)
        self.t_max = float(len(table) - 1)
        self._angles = torch.atan2(torch.sqrt(1.0 - table), torch.sqrt(table))

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last step is pure noise: then ``eps`` predictions are undefined there."""
        return float(self.alphas_cumprod[-1]) == 0.0

    def angle(self, t: Tensor) -> Tensor:
        """The table's angle, linear between its entries; times outside the table are clamped to it."""
        angles = self._angles.to(t.device)
        t = t.double().clamp(0.0, self.t_max)
        low = t.floor().long().clamp(max=self.num_train_timesteps - 2)
        return torch.lerp(angles[low], angles[low + 1], t - low)

    def time_at(self, angle: Tensor) -> Tensor:
        """The inverse of :meth:`angle`; angles outside the table are clamped to it."""
        angles = self._angles.to(angle.device)
        angle = angle.double().clamp(angles[0], angles[-1])
        low = (torch.searchsorted(angles, angle.contiguous(), right=True) - 1).clamp(0, self.num_train_timesteps - 2)
        return low + (angle - angles[low]) / (angles[low + 1] - angles[low])

    def alpha(self, t: Tensor) -> Tensor:
        """``sqrt(alphas_cumprod)``; exactly 0 at the end of a zero-terminal-SNR table."""
        angle = self.angle(t)
        alpha = torch.cos(angle)
        if self.zero_terminal_snr:  # cos(pi / 2) is 6e-17 in float64
            alpha = torch.where(angle >= self._angles[-1].to(angle.device), 0.0, alpha)
        return alpha

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - alphas_cumprod)``."""
        return torch.sin(self.angle(t))

    def model_time(self, t: Tensor) -> Tensor:
        """``t`` itself."""
        return t.double()

    def position(self, t: Tensor) -> Tensor:
        """``(t + 1) / T``: a sampler with trailing timesteps takes equal steps of it; 0 is behind the table."""
        return (t.double() + 1.0) / self.num_train_timesteps

    def time_of_position(self, position: Tensor) -> Tensor:
        """``T position - 1``, not below the table."""
        return (position.double() * self.num_train_timesteps - 1.0).clamp(min=0.0)


class EDMProcess(Process):
    """Variance exploding (Karras et al. 2022): ``alpha = 1``, ``sigma = t``; networks are fed ``log(t) / 4``."""

    name = "edm"
    num_train_timesteps = 1000
    rho = 7.0

    def __init__(self, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        """Takes the range of noise levels."""
        self.t_min, self.t_max = sigma_min, sigma_max

    def angle(self, t: Tensor) -> Tensor:
        """``atan(t)``."""
        return torch.atan(t.double())

    def time_at(self, angle: Tensor) -> Tensor:
        """``tan``, clamped to the range."""
        return torch.tan(angle.double()).clamp(self.t_min, self.t_max)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t.double()

    def model_time(self, t: Tensor) -> Tensor:
        """``log(t) / 4``."""
        return t.double().log() / 4.0

    def position(self, t: Tensor) -> Tensor:
        """Where Karras' grid with rho = 7 has ``t``."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        place: Tensor = (t.double() ** (1 / self.rho) - low) / (high - low)
        return place

    def time_of_position(self, position: Tensor) -> Tensor:
        """The inverse of :meth:`position`."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        time: Tensor = (low + position.double() * (high - low)) ** self.rho
        return time


_Coefficient = Tensor | float


def _times(a: _Coefficient, b: _Coefficient) -> _Coefficient:
    """``a b`` where an exact 0 wins: a term that is not used must not turn an infinite partner into NaN."""
    if (isinstance(a, float) and a == 0.0) or (isinstance(b, float) and b == 0.0):
        return 0.0
    return a * b


def _solve(
    alpha: Tensor, sigma: Tensor, source: PredictionKind
) -> tuple[tuple[_Coefficient, _Coefficient], tuple[_Coefficient, _Coefficient]]:
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


def _weights(alpha: Tensor, sigma: Tensor, target: PredictionKind) -> tuple[_Coefficient, _Coefficient]:
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


def _refuse_undefined(alpha: Tensor, sigma: Tensor, t: Tensor, source: PredictionKind) -> None:
    if t.device.type != "cpu":
        return
    if source == "eps" and bool((alpha == 0).any()):
        raise ValueError("an eps prediction says nothing about x0 where alpha is 0 (zero SNR); predict v or x0 there")
    if source == "x0" and bool((sigma == 0).any()):
        raise ValueError("an x0 prediction says nothing about eps where sigma is 0 (no noise)")


def _combine(a: _Coefficient, x: Tensor, b: _Coefficient, y: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """``a x + b y`` for images and per-row coefficients, computed in at least float32, in ``dtype`` (default x's)."""
    compute = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    result = _rows(a, x, compute) * x.to(compute) + _rows(b, y, compute) * y.to(compute)
    return result.to(dtype if dtype is not None else x.dtype)


def _rows(coefficient: _Coefficient, images: Tensor, dtype: torch.dtype) -> _Coefficient:
    if isinstance(coefficient, float):
        return coefficient
    coefficient = coefficient.to(device=images.device, dtype=dtype)
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (images.ndim - coefficient.ndim))
