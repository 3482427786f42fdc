"""How samplers solve a mixture: their order of convergence against its exact ODE, and how far few steps end from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ddx.bench.mixtures.mixture import Mixture, circle
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.methods.parts.flow_view import FlowView
from ddx.teachers.base import Teacher
from ddx.teachers.samplers import schedulers
from ddx.teachers.samplers.analytic import Known
from ddx.teachers.samplers.measuring import measure_variances, time_key
from ddx.teachers.samplers.names import ANALYTIC, SAMPLERS
from ddx.teachers.samplers.sampler import TeacherSampler

NUM = 48
MIXTURE = circle(std=0.5)
TOP = 0.9  # where flow times begin: a rule in log(alpha / sigma) has no order where that is infinite
PLACE = 0.2  # share of the way at which states are compared: the last step to the picture is Euler's in all samplers
STEPS = (50, 200)  # each divides a table's thousand


def order_of(name: str, process: str) -> tuple[float, float, float]:
    """Return the order of a sampler between `STEPS`, and its root mean square errors at the two."""
    teacher = MixtureTeacher(MIXTURE, process)
    wanted, exact = exact_state(process)
    errors = []
    for steps in STEPS:
        state, t = state_on_the_way(teacher, name, steps)
        assert abs(float(t - wanted)) < 1e-6, "both are at the same place"
        errors.append(float((state - exact).square().mean().sqrt()))
    return math.log(errors[0] / errors[1], STEPS[1] / STEPS[0]), errors[0], errors[1]


def state_on_the_way(teacher: MixtureTeacher, name: str, steps: int) -> tuple[Tensor, Tensor]:
    """Return the state at `PLACE` of `steps` steps, `[NUM, D, 1, 1]`, and its process time."""
    own = schedulers.flow_sigmas
    with mock.patch.object(schedulers, "flow_sigmas", lambda *arguments: TOP * own(*arguments)):
        scheduler, times = TeacherSampler(name=name).steps(teacher, steps, teacher.latent_shape())
    x = _noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, timestep: x)
    condition = teacher.null_condition().expand(NUM)
    last = round((1.0 - PLACE) * steps) * SAMPLERS[name].evaluations
    for number, (timestep, t) in enumerate(zip(scheduler.timesteps, times, strict=True)):
        seen = scaled(x, timestep)
        if number == last:
            return seen, t
        prediction = teacher.predict(teacher.network(), seen, t.expand(NUM), condition)
        x = scheduler.step(prediction, timestep, x, return_dict=False)[0]
    raise AssertionError("it has fewer steps")


@functools.cache
def exact_state(process: str) -> tuple[Tensor, Tensor]:
    """Return the process time of `PLACE`, and where the formula's own ODE is there, by the rule of Runge and Kutta."""
    teacher = MixtureTeacher(MIXTURE, process)
    view = FlowView(teacher)
    every = torch.full((NUM,), MIXTURE.num_classes)

    def slope(x: Tensor, tau: Tensor) -> Tensor:
        x0 = MIXTURE.x0(x.flatten(1), (1 - tau).expand(NUM), tau.expand(NUM), every).reshape(x.shape)
        return (x - x0) / tau

    t = torch.tensor(PLACE * TOP if view.is_flow else PLACE * 1000 - 1, dtype=torch.float64)
    top = TOP if view.is_flow else view.t_max
    x = view.start(_noise(), top).double()
    for tau, then in pairwise(torch.linspace(top, float(teacher.process.flow_time(t)), 301, dtype=torch.float64)):
        h = then - tau
        k1 = slope(x, tau)
        k2 = slope(x + h / 2 * k1, tau + h / 2)
        k3 = slope(x + h / 2 * k2, tau + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, then))
    return t, x if view.is_flow else (teacher.process.alpha(t) + teacher.process.sigma(t)) * x


class PointVariances:
    """The variances of Analytic-DPM on a mixture's own points."""

    def __init__(self, mixture: Mixture, num: int = 40_000) -> None:
        self.mixture, self.num = mixture, num
        self.found: dict[str, Any] = {}

    def at(self, teacher: Teacher, times: Sequence[float]) -> Known:
        """See :meth:`ddx.teachers.samplers.analytic.Variances.at`."""
        assert isinstance(teacher, MixtureTeacher)
        classes = torch.full((self.num,), self.mixture.num_classes)
        x0 = self.mixture.draw(classes, torch.Generator().manual_seed(1))[:, :, None, None]
        self.found = measure_variances(teacher, [(x0, teacher.condition(classes))], teacher.null_condition(), times)
        errors = tuple(self.found["times"][time_key(t)]["error"] for t in times)
        return Known(errors, self.found["variance"], self.found["half_range"])

    def fingerprint(self) -> str:
        """One mixture has one."""
        return "points"


def drawn(mixture: Mixture, process: str, name: str, steps: int, num: int) -> Tensor:
    """Return points `[num, D]` that a sampler draws."""
    teacher = MixtureTeacher(mixture, process)
    classes = torch.full((num,), mixture.num_classes)
    found = teacher.sample(
        teacher.condition(classes),
        teacher.null_condition(),
        num_steps=steps,
        generators=[torch.Generator().manual_seed(seed) for seed in range(num)],
        sampler=TeacherSampler(name=name, variances=PointVariances(mixture) if name == ANALYTIC else None),
    )
    return found.flatten(1)


def points(mixture: Mixture, num: int, seed: int) -> Tensor:
    """Return points `[num, D]` of the mixture."""
    return mixture.draw(torch.full((num,), mixture.num_classes), torch.Generator().manual_seed(seed))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return ``2 E|x - y| - E|x - x'| - E|y - y'|`` of points `[N, D]`: 0 for equal distributions."""
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def _noise() -> Tensor:
    return torch.randn(NUM, 2, 1, 1, generator=torch.Generator().manual_seed(0))
