"""Any teacher seen as one of flow matching, so that a method is written once.

    tau = sigma / (alpha + sigma),  x_tau = x_t / (alpha + sigma) = (1 - tau) x0 + tau eps,  dx_tau/dtau = eps - x0

For every process the rescaled state lies on the straight line from picture to noise, and the `flow` prediction is its
velocity (Kingma et al. 2021 show the equivalence). Times are flow times, float64; a flow teacher is seen as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddx.device import send
from ddx.process import FlowProcess, Process
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition

FLOW = FlowProcess()
LEAST_TIME = 1e-3  # where a solver asks for the slope at the end of an ODE
Slope = Callable[[Tensor, Tensor], Tensor]
"""A velocity `[B, ...]` at (x, t)."""


class FlowView:
    """A teacher, and every network of its class, as velocity models of flow time.

    x is on the flow path, scaled latents `[B, C, h, w]`; t is a flow time, float64 `[B]` or `[]`.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.process: Process = teacher.process
        self.is_flow = isinstance(self.process, FlowProcess)
        self.t_min, self.t_max = (
            float(self.process.flow_time(torch.tensor(t, dtype=torch.float64)))
            for t in (self.process.t_min, self.process.t_max)
        )

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the predicted ``eps - x0``, float32. A negative t is fed as the negative of the time of -t."""
        state, time, sign = self._state(x, t)
        prediction = self.teacher.predict(network, state, sign * time, condition)
        return self.process.convert(prediction, state, time, self.teacher.prediction, "flow")

    def guided(
        self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition, null: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return the velocity with classifier-free guidance; a number or `[B]`, 1 for none."""
        state, time, _ = self._state(x, t)
        prediction = self.teacher.guided(network, state, time, condition, null, guidance)
        return self.process.convert(prediction, state, time, self.teacher.prediction, "flow")

    @torch.no_grad()
    def velocity_dual(
        self, network: nn.Module, x: Tensor, dx: Tensor, t: Tensor, dt: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity, and its exact derivative along (dx, dt), dt float64 `[B]`; no gradients.

        `network` is the bare one. Through :meth:`Teacher.predict_dual`, and ``func.jvp`` for the change of variables.
        """
        if self.is_flow and self.teacher.prediction == "flow":
            return self.teacher.predict_dual(network, x, dx, t, dt, condition)
        jvp = torch.func.jvp
        time, dtime, *_ = jvp(self.own_time, (t.double(),), (dt.double(),))
        state, dstate, *_ = jvp(self._scaled, (x, time), (dx.to(x.dtype), dtime))
        prediction, dprediction = self.teacher.predict_dual(network, state, dstate, time, dtime, condition)

        def convert(prediction: Tensor, state: Tensor, time: Tensor) -> Tensor:
            return self.process.convert(prediction, state, time, self.teacher.prediction, "flow")

        found = jvp(convert, (prediction, state, time), (dprediction, dstate, dtime))
        return found[0], found[1]

    def features(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Return :meth:`Teacher.features` at (x, t)."""
        state, time, _ = self._state(x, t)
        return self.teacher.features(network, state, time, condition)

    def start(self, noise: Tensor, t: Tensor | float) -> Tensor:
        """Return unit noise as a pipeline of the family feeds it at flow time t, on the flow path."""
        if self.is_flow:
            return noise
        time = self.own_time(
            t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float64, device=noise.device)
        )
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        return rows((alpha**2 + sigma**2).sqrt() / (alpha + sigma), noise) * noise

    def times(self, num_steps: int, first: float | None = None) -> Tensor:
        """Return where `num_steps` steps of the exported student's sampler are, and 0: flow times, float64 `[n + 1]`.

        Equal steps of the family's own clock, from flow time `first` (None: the noisiest).
        """
        top = self.position(torch.tensor(self.t_max if first is None else first, dtype=torch.float64))
        if self.process.name == "vp":  # the first step is a whole timestep too, and the others are shares of that
            top = self.process.position(self.process.time_of_position(top).round())
        positions = top * torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps
        return self.time_of_position(positions)

    def sampled_times(self, times: Sequence[float]) -> Tensor:
        """Return these flow times as a pipeline of the family takes them, and 0: float64 `[n + 1]`.

        Times above the noisiest are the noisiest; on VP each is that of a whole timestep.
        """
        given = torch.tensor((*times, 0.0), dtype=torch.float64).clamp(max=self.t_max)
        if self.process.name != "vp":
            return given
        return torch.where(given > 0.0, self.process.flow_time(self.own_time(given).round()), 0.0)

    def timesteps(self, times: Sequence[float]) -> list[int]:
        """Return the whole timesteps of flow times, on VP."""
        return [round(float(time)) for time in self.own_time(torch.tensor(times, dtype=torch.float64))]

    def solver_times(self, num_steps: int) -> Tensor:
        """Return equal steps of flow time from the noisiest one to 0, on VP at whole timesteps: float64 `[n + 1]`.

        A family's own clock takes its longest steps where the picture comes out: eight equal ones of a DDPM table leave
        the modes of a mixture a quarter too wide, eight of these 4 %.
        """
        return self.sampled_times(
            (self.t_max * torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps).tolist()
        )

    @torch.no_grad()
    def ode_end(self, slope: Slope, x: Tensor, num_steps: int, order: int = 2) -> Tensor:
        """Return where the ODE of `slope` takes x, which is at the noisiest time, in steps of :meth:`solver_times`.

        Order 1 is Euler's rule; 2 is Heun's, which asks for the last slope just before the picture: at it some networks
        have no velocity, and steps that are this long cannot do without it.
        """
        least = max(self.t_min, LEAST_TIME)
        for t, r in pairwise(send(self.solver_times(num_steps), x.device)):
            v = slope(x, t.expand(len(x)))
            if order == 2:
                v = 0.5 * (v + slope(x + rows(r - t, x) * v, r.clamp(min=least).expand(len(x))))
            x = x + rows(r - t, x) * v
        return x

    def position(self, t: Tensor) -> Tensor:
        """Return where the exported student's sampler has flow time t: in [0, 1], float64; equal steps are equal."""
        return t.double() if self.is_flow else torch.where(t > 0.0, self.process.position(self.own_time(t)), 0.0)

    def time_of_position(self, position: Tensor) -> Tensor:
        """Return the flow time of a position, whole timesteps for VP; the inverse of :meth:`position`."""
        if self.is_flow:
            return position.double()
        time = self.process.time_of_position(position)
        if self.process.name == "vp":
            time = time.round()
        return torch.where(position > 0.0, self.process.flow_time(time), 0.0)

    def own_time(self, t: Tensor) -> Tensor:
        """Return the process's own time of flow time t."""
        return t.double() if self.is_flow else self.process.time_at(FLOW.angle(t))

    def step_times(self, share: Tensor) -> Tensor:
        """Return the flow times of whole timesteps, float64, at shares in [0, 1) of them; VP alone has some."""
        steps = (share.double() * (self.process.t_max + 1.0)).floor().clamp(0.0, self.process.t_max)
        return self.process.flow_time(steps)

    def _scaled(self, x: Tensor, time: Tensor) -> Tensor:
        return x if self.is_flow else rows(self.process.alpha(time) + self.process.sigma(time), x) * x

    def _state(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the state and the time of the teacher's own process, and the sign of t."""
        time = self.own_time(t.abs())
        return self._scaled(x, time), time, torch.where(t < 0.0, -1.0, 1.0).double()


def rows(coefficient: Tensor | float, images: Tensor) -> Tensor:
    """Return one number a row, `[B]` or `[]`, in the shape and dtype in which it multiplies images `[B, ...]`."""
    if not isinstance(coefficient, Tensor):
        return images.new_full((), coefficient)
    value = coefficient.to(images.device, images.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (images.ndim - 1))


def clean(x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """Return ``x - t velocity``, the picture that a velocity at flow times t `[B]` points back to."""
    return x - rows(t, x) * velocity


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean square of each row, `[B]`, of `[B, ...]`."""
    return difference.square().flatten(1).mean(1)
