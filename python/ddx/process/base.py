"""Forward processes in float64, and what a prediction of one kind says as another one.

Every family that ddx distils is ``x_t = alpha(t) x0 + sigma(t) eps`` for one pair of coefficients. A network predicts
one linear combination of ``x0`` and ``eps``; together with ``x_t`` that fixes both, so each kind converts to each other
one through the process. Times and coefficients are float64; images keep their dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ddx.process.conversion import PredictionKind, clean_and_noise, combine, product, refuse_undefined, weights_of


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
        return combine(self.alpha(t), x0, self.sigma(t), noise)

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
        refuse_undefined(alpha, sigma, t, source)
        (x0_x, x0_p), (eps_x, eps_p) = clean_and_noise(alpha, sigma, source)
        # the target is x0_weight * x0 + eps_weight * eps, and both are a * x_t + b * prediction
        x0_weight, eps_weight = weights_of(alpha, sigma, target)
        from_x = product(x0_weight, x0_x) + product(eps_weight, eps_x)
        from_p = product(x0_weight, x0_p) + product(eps_weight, eps_p)
        return combine(from_x, x_t, from_p, prediction, dtype=prediction.dtype)

    def solver_step(self, prediction: Tensor, x_t: Tensor, t: Tensor, r: Tensor, kind: PredictionKind) -> Tensor:
        """``alpha(r) x0 + sigma(r) eps`` with both read off the prediction at ``t``: the state at time ``r``.

        This is DDIM without noise (Song et al. 2021); for the flow process it is the Euler step
        ``x_t + (r - t) v``. Same shapes and errors as :meth:`convert`; the dtype of ``x_t``.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        refuse_undefined(alpha, sigma, t, kind)
        (x0_x, x0_p), (eps_x, eps_p) = clean_and_noise(alpha, sigma, kind)
        alpha_r, sigma_r = self.alpha(r), self.sigma(r)
        return combine(
            product(alpha_r, x0_x) + product(sigma_r, eps_x),
            x_t,
            product(alpha_r, x0_p) + product(sigma_r, eps_p),
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
