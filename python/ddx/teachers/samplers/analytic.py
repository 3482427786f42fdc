"""Analytic-DPM: ancestral sampling with the variance that is best for its mean (Bao et al. 2022, arXiv:2201.06503).

    q(x_{n-1} | x_n, x_0) = N(sqrt(a_{n-1}) x_0 + sqrt(b_{n-1} - l2) eps, l2),    l2 = b_{n-1} / b_n (1 - a_n / a_{n-1})
    sigma2 = l2 + (sqrt(a_{n-1}) - sqrt(b_{n-1} - l2) sqrt(a_n / b_n))^2 v_n,     v_n = b_n / a_n (1 - b_n Gamma_n)

a is the cumulated alpha of the chain and b = 1 - a; l2 is DDPM's variance, which leaves out that x_0 is not known. v_n
is the mean variance of a latent's component given x_n; Gamma_n = E|eps_hat|^2 / (d b_n) says the same of the score. The
form with v_n stays finite where no signal is left. It serves every process: x / sqrt(alpha^2 + sigma^2) is such a
chain, so flow teachers have it too. The last step ends at the predicted picture.

v_n is clipped to the paper's bounds: 0 <= 1 - b_n Gamma_n <= 1, and half the range of the data, squared; and to the
variance of the data, which bounds it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ddx.process import Process
from ddx.process.conversion import combine

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher


@dataclass(frozen=True)
class Known:
    """What was measured of scaled latents: v at each time that was asked for; of the data their variance and range."""

    errors: tuple[float, ...]
    variance: float
    half_range: float


class Variances(Protocol):
    """What measures v for a teacher, on whatever data."""

    def at(self, teacher: Teacher, times: Sequence[float]) -> Known:
        """Return v at process times, measured now or before."""

    def fingerprint(self) -> str:
        """Return what tells these variances from others: equal ones give equal pictures."""


def chain(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cumulated alpha `a` and ``1 - a`` of a process's time, float64."""
    alpha, sigma = process.alpha(t).square(), process.sigma(t).square()
    return alpha / (alpha + sigma), sigma / (alpha + sigma)


def clipped(v: Tensor, a: Tensor, b: Tensor, known: Known) -> Tensor:
    """Return v within the paper's bounds and below the variance of the data."""
    most = torch.minimum(b / a, v.new_tensor(min(known.half_range**2, known.variance)))
    return torch.minimum(v.clamp(min=0.0), most)


def step_weights(a: Tensor, b: Tensor, a_next: Tensor, b_next: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of x0 and of eps in the mean of x_{n-1}, and its variance."""
    own = (b_next / b * (1.0 - a / a_next)).clamp(min=0.0)
    of_eps = (b_next - own).clamp(min=0.0).sqrt()
    variance = own + (a_next.sqrt() - of_eps * (a / b).sqrt()).square() * v
    return a_next.sqrt(), of_eps, variance


class AnalyticDPMScheduler:
    """Analytic-DPM in the shape of a diffusers scheduler, on the family's own times."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, teacher: Teacher, latent_shape: tuple[int, ...], variances: Variances) -> None:
        from diffusers.configuration_utils import FrozenDict

        self.teacher, self.latent_shape, self.variances = teacher, latent_shape, variances
        self.config = FrozenDict({"num_train_timesteps": teacher.process.num_train_timesteps})

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Take the family's own times for that number of steps, and their variances, which may be measured now."""
        num_steps = num_inference_steps if sigmas is None else len(sigmas)
        assert num_steps is not None
        scheduler, times = self.teacher.sampling_scheduler(num_steps, self.latent_shape)
        self.timesteps = scheduler.timesteps.to(device)
        self.times = times.double().cpu()
        known = self.variances.at(self.teacher, self.times.tolist())
        a, b = chain(self.teacher.process, self.times)
        v = clipped(torch.tensor(known.errors, dtype=torch.float64), a, b, known)
        self.weights = [step_weights(a[n], b[n], a[n + 1], b[n + 1], v[n]) for n in range(num_steps - 1)]
        self._number = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at that step; pipelines begin at the first."""
        self._number = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample: states are the teacher's own."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """Return the next state, as a tuple or an output of diffusers. The generator may be a list, one a picture."""
        from diffusers.schedulers.scheduling_utils import SchedulerOutput
        from diffusers.utils.torch_utils import randn_tensor

        process, number = self.teacher.process, self._number
        t = self.times[number]
        state, output = sample.float(), model_output.float()
        x0 = process.convert(output, state, t, self.teacher.prediction, "x0")
        if number == len(self.times) - 1:
            found = x0
        else:
            eps = process.convert(x0, state, t, "x0", "eps")
            of_x0, of_eps, variance = self.weights[number]
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
            after = self.times[number + 1]
            length = (process.alpha(after).square() + process.sigma(after).square()).sqrt()
            found = combine(length * of_x0, x0, length * of_eps, eps)
            found = combine(torch.ones_like(length), found, length * variance.sqrt(), noise)
        self._number += 1
        found = found.to(model_output.dtype)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)
