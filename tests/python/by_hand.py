"""The velocity of a teacher's network at a flow time, written out by hand in float64, to test methods against."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddx.networks.guidance import guidance_input, interval_input
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition


class ByHand:
    """One row at a time: x float64 `[1, C, h, w]`, times and intervals Python numbers."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.process, self.is_flow = teacher, teacher.process, teacher.prediction == "flow"
        ends = (0.0, 1.0) if self.is_flow else tuple(self._flow_time(t) for t in (0.0, self.process.t_max))
        self.t_min, self.t_max = ends

    def _flow_time(self, time: float) -> float:
        bar = float(self.process.alphas_cumprod[int(time)])  # type: ignore[attr-defined]
        return math.sqrt(1 - bar) / (math.sqrt(bar) + math.sqrt(1 - bar))

    def _own_time(self, t: float) -> Tensor:
        return self.process.time_at(torch.tensor(math.atan2(t, 1 - t), dtype=torch.float64))

    def position(self, t: float) -> float:
        """Where the student's sampler has a flow time: 1 at noise, 0 at the picture."""
        if self.is_flow or t <= 0.0:
            return max(t, 0.0)
        return (float(self._own_time(t)) + 1.0) / 1000.0

    def time_of(self, position: float) -> float:
        """The inverse: whole timesteps."""
        if self.is_flow or position <= 0.0:
            return max(position, 0.0)
        return self._flow_time(max(round(1000.0 * position - 1.0), 0))

    def solver_time(self, share: float) -> float:
        """This share of the noisiest flow time, at a whole timestep."""
        t = share * self.t_max
        return t if self.is_flow else self._flow_time(round(float(self._own_time(t))))

    @torch.no_grad()
    def velocity(
        self,
        network: nn.Module,
        x: Tensor,
        t: float,
        condition: Condition,
        *,
        guidance: float = 1.0,
        interval: float = 0.0,
    ) -> Tensor:
        """eps - x0 of a network; at a negative t it is asked at the negative of its own time."""
        with guidance_input(network, guidance), interval_input(network, interval):
            if self.is_flow:
                time = torch.tensor([t], dtype=torch.float64)
                return self.teacher.predict(network, x.float(), time, condition).double()
            time = self._own_time(abs(t))
            angle = self.process.angle(time)
            alpha, sigma = float(angle.cos()), float(angle.sin())
            state = (alpha + sigma) * x
            signed = math.copysign(float(time), t)
            asked = torch.tensor([signed], dtype=torch.float64)
            predicted = self.teacher.predict(network, state.float(), asked, condition).double()
        if self.teacher.prediction == "eps":
            return predicted - (state - sigma * predicted) / alpha
        return sigma * state + alpha * predicted - (alpha * state - sigma * predicted)

    def guided(self, x: Tensor, t: float, condition: Condition, null: Condition, guidance: float) -> Tensor:
        """The teacher's guided velocity."""
        network = self.teacher.network()
        uncond, cond = (self.velocity(network, x, t, which) for which in (null, condition))
        return uncond + guidance * (cond - uncond)

    def average(
        self, network: nn.Module, x: Tensor, t: float, r: float, condition: Condition, guidance: float
    ) -> Tensor:
        """F(x, t, r) of a network that takes intervals."""
        interval = self.position(t) - self.position(r)
        return self.velocity(network, x, t, condition, guidance=guidance, interval=interval)

    def start(self, noise: Tensor) -> Tensor:
        """Unit noise on the flow path at the noisiest time."""
        if self.is_flow:
            return noise
        bar = float(self.process.alphas_cumprod[-1])  # type: ignore[attr-defined]
        return noise / (math.sqrt(bar) + math.sqrt(1 - bar))
