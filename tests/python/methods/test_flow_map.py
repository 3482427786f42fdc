from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.flow_map import FlowMap, PairsConfig, displacement
from ddx.methods.parts.flow_view import rows
from ddx.teachers.base import Teacher
from distilling import make_batch, make_teacher

torch.set_num_threads(1)


class Plain(FlowMap):
    config: PairsConfig

    def losses(self, turn: Turn, batch: Batch, networks: object) -> Losses:
        raise NotImplementedError


@dataclass(frozen=True)
class Made:
    method: Plain
    student: nn.Module
    batch: Batch


def make(teacher: Teacher, *, trained: bool, **settings: float) -> Made:
    method = Plain(PairsConfig(**settings), teacher)  # type: ignore[arg-type]
    torch.manual_seed(0)
    student = method.build(NetworkSpec(name=STUDENT))
    if trained:
        with torch.no_grad():
            for name in ("guidance_embedder", "interval_embedder"):
                if hasattr(student, name):
                    nn.init.normal_(student.get_submodule(name).last.weight, std=0.05)  # type: ignore[union-attr,arg-type]
    return Made(method, student.eval(), make_batch(teacher))


def times(method: Plain, *positions: float) -> list[Tensor]:
    return [method.view.time_of_position(torch.full((4,), p, dtype=torch.float64)) for p in positions]


@torch.no_grad()
def test_over_no_interval_the_student_is_the_teacher_exactly_also_when_its_embedder_is_trained(
    teacher: Teacher,
) -> None:
    made = make(teacher, trained=True)
    (t,) = times(made.method, 0.75)
    found = made.method.average_velocity(made.student, made.batch.x0, t, t, made.batch.condition, 1.0)
    expected = made.method.view.velocity(teacher.network(), made.batch.x0, t, made.batch.condition)
    assert torch.equal(found, expected)
    far = made.method.average_velocity(made.student, made.batch.x0, t, 0 * t, made.batch.condition, 1.0)
    assert float((far - expected).norm() / expected.norm()) > 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@torch.no_grad()
def test_the_folded_network_is_the_student_and_steps_as_it_draws(teacher: Teacher, num_steps: int) -> None:
    made = make(teacher, trained=True, guidance_min=2.0, guidance_max=6.0, export_guidance=3.0)
    method, student, condition = made.method, made.student, made.batch.condition
    plain = method.plain_network(student, num_steps).eval()
    assert type(plain) is type(teacher.network())
    assert set(plain.state_dict()) == set(teacher.network().state_dict())
    (t,) = times(method, 0.5)
    full = method.jump_velocity(student, made.batch.x0, t, 1.0 / num_steps, condition, 3.0)
    folded = method.view.velocity(plain, made.batch.x0, t, condition)
    assert float((folded - full).norm() / full.norm()) <= 5e-7

    noises = [torch.randn(made.batch.x0.shape, generator=torch.Generator().manual_seed(n)) for n in range(num_steps)]
    x = method.view.start(noises[0], method.view.t_max)
    grid = [torch.full((4,), float(t), dtype=torch.float64) for t in method.view.times(num_steps)]
    for t, r in pairwise(grid):
        x = x + rows(r - t, x) * method.view.velocity(plain, x, t, condition)
    drawn = method.draw(student, noises, condition)
    assert float((drawn - x).norm() / x.norm()) <= 2e-5


def test_the_derivative_of_the_average_velocity_is_that_of_finite_differences(teacher: Teacher) -> None:
    made = make(teacher, trained=True)
    method, batch = made.method, made.batch
    network = made.student.double() if teacher.prediction != "flow" else made.student
    t, r = (torch.full((4,), value, dtype=torch.float64) for value in (0.7, 0.3))
    dt, dr = torch.full_like(t, 0.6), torch.full_like(t, -0.4)
    dx = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1))
    value, found = method.average_velocity_dual(network, batch.x0, dx, t, dt, r, dr, batch.condition, 1.0)

    def moved(h: float) -> Tensor:
        with torch.no_grad():
            return method.average_velocity(
                network, batch.x0 + h * dx, t + h * dt, r + h * dr, batch.condition, 1.0
            ).double()

    h = 2e-4  # less than a timestep
    by_differences = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    torch.testing.assert_close(value, moved(0.0).float(), rtol=1e-4, atol=1e-4)
    assert float((found - by_differences).norm() / by_differences.norm()) < 0.02
    still = method.average_velocity_dual(network, batch.x0, dx, t, dt, r, 0 * dr, batch.condition, 1.0)[1]
    assert float((found - still).norm() / found.norm()) > 1e-4  # the interval moves it too


@pytest.mark.parametrize("second_time", ["below", "drawn"])
def test_pairs_are_ordered_and_some_are_equal(teacher: Teacher, second_time: str) -> None:
    made = make(teacher, trained=False, second_time=second_time, same_time_share=0.5)  # type: ignore[arg-type]
    equal = 0
    for step in range(20):
        drawn, r = made.method.draw_pairs(make_batch(teacher, step), made.method.config)
        assert bool((r <= drawn.t).all()) and bool((drawn.t <= made.method.view.t_max).all()) and bool((r >= 0).all())
        equal += int((r == drawn.t).sum())
    assert 20 < equal < 60


def test_jumps_of_the_exact_map_meet_wherever_they_stop_over() -> None:
    """For normal data of deviation s the map is known: x_r = x_t d(r) / d(t), d(t)^2 = (1 - t)^2 s^2 + t^2."""
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def spread(t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * 0.25 + t**2).sqrt()

    def jump(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return rows((1 - spread(r) / spread(t)) / (t - r), x) * x

    stops = [torch.full((4,), t, dtype=torch.float64) for t in (1.0, 0.8, 0.3, 0.0)]
    torch.testing.assert_close(displacement(jump, x, stops), displacement(jump, x, [stops[0], stops[-1]]))


def test_guidance_from_data_has_the_guided_velocity_as_its_fixed_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    made = make(teacher, trained=False, guidance_min=5.0, guidance_max=5.0)
    method, batch, network = made.method, made.batch, teacher.network()
    t = torch.full((4,), 0.6, dtype=torch.float64)
    with torch.no_grad():
        guided = method.teacher_velocity(batch.x0, t, batch, 5.0)
        noise = batch.x0 + method.view.velocity(network, batch.x0, t, batch.condition)  # eps - x0 is the velocity
        monkeypatch.setattr(method, "jump_velocity", lambda *_: guided)
        found = method.instant_velocity("data", made.student, batch, noise, batch.x0, t, 5.0)
    torch.testing.assert_close(found, guided, rtol=1e-4, atol=1e-4)


def test_guidance_may_lead_away_from_the_networks_own_null_caption(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    made = make(teacher, trained=True, guidance_min=5.0, guidance_max=5.0)
    method, batch, network = made.method, made.batch, made.student
    t, noise = torch.full((4,), 0.6, dtype=torch.float64), torch.randn_like(made.batch.x0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
        own, null = (
            method.average_velocity(network, batch.x0, t, t, condition, 5.0)
            for condition in (batch.condition, batch.null.expand(4))
        )
        found, usual = (
            method.instant_velocity("data", network, batch, noise, batch.x0, t, 5.0, null_from)
            for null_from in ("own", "teacher")
        )
    torch.testing.assert_close(found, noise - batch.x0 + 0.8 * (own - null))
    assert not torch.allclose(found, usual, atol=1e-3)


def test_a_share_above_one_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="same_time_share"):
        PairsConfig(same_time_share=1.5)
