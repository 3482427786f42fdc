"""Methods whose student is a flow map, or learns the end of an ODE: what they train, their stages, their identities."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch
from ddx.methods.parts.flow_view import rows
from ddx.methods.progressive import Progressive, ProgressiveConfig
from ddx.methods.rcgm import map_error
from ddx.methods.registry import method_spec
from ddx.teachers.base import Teacher
from distilling import in_turns, make_batch, make_teacher
from method_runs import make_run

torch.set_num_threads(1)
NAMES = ("shortcut", "rcgm", "twinflow", "progressive", "reflow", "imf", "freeflow")
GUIDANCE = 3.0
FIXED = {"guidance_min": GUIDANCE, "guidance_max": GUIDANCE}


# what every one of them does


@pytest.mark.parametrize(("name", "teacher"), in_turns(NAMES), indirect=["teacher"])
def test_the_gradient_reaches_every_parameter_of_the_student_and_nothing_else(teacher: Teacher, name: str) -> None:
    run = make_run(teacher, name, guidance_min=2.0, guidance_max=6.0)
    found = run.losses(make_batch(teacher, 1))
    total = found.by_network[STUDENT].sum()
    if STUDENT in found.secondary:
        total = total + found.secondary[STUDENT].sum()
    total.backward()
    missing = [n for n, p in run.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in missing if not n.endswith("to_k.bias")] == []  # attention is blind to a constant in its keys
    others = [network for label, network in run.networks.items() if label != STUDENT] + [teacher.network()]
    assert all(p.grad is None for network in others for p in network.parameters())


@pytest.mark.parametrize(("name", "teacher"), in_turns(NAMES, first=1), indirect=["teacher"])
def test_guidance_reaches_the_student_s_output_when_a_range_is_trained(teacher: Teacher, name: str) -> None:
    run = make_run(teacher, name, guidance_min=2.0, guidance_max=6.0)
    batch, noises = make_batch(teacher), [torch.randn(4, *teacher.latent_shape())]
    low, high = (run.method.draw(run.student.eval(), noises, batch.condition, guidance=s) for s in (2.0, 6.0))
    assert float((low - high).abs().max()) > 1e-4
    losses = run.losses(batch)
    assert losses.by_network[STUDENT].shape == (4,) and bool(torch.isfinite(losses.by_network[STUDENT]).all())


# identities


def test_the_error_of_the_exact_map_falls_with_the_small_step() -> None:
    """Normal data of deviation s: x_r = x_t d(r) / d(t), d(t)^2 = (1 - t)^2 s^2 + t^2, v = x d'(t) / d(t)."""
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], dtype=torch.float64)
    r = 0.3 * t

    def spread(t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * 0.25 + t**2).sqrt()

    def jump(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return rows((1 - spread(r) / spread(t)) / (t - r), x) * x

    slope = (t - 0.25 * (1 - t)) / spread(t) ** 2
    velocity = rows(slope, x) * x

    def error(step: float, factor: float = 1.0) -> float:
        exact = factor * jump(x, t, r)
        return float(map_error(exact, velocity, jump, x, t, r, step=step, num_jumps=2).norm())

    assert error(0.02) / error(0.01) == pytest.approx(2.0, rel=0.05)
    assert error(1e-4) < 1e-3 < error(1e-4, factor=1.01)
    near = map_error(velocity, velocity, jump, x, t, t - 0.005, step=0.01, num_jumps=2)
    assert not near.any()


def test_freeflow_s_target_is_the_exact_map_where_the_student_is_it(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = MixtureTeacher(circle(num_modes=1, radius=0.0, std=0.5), "flow")
    method: Any = method_spec("freeflow").method(method_spec("freeflow").config(), teacher)
    batch = Batch(
        x0=torch.zeros(4, 2, 1, 1),
        condition=teacher.condition(torch.zeros(4).long()),
        null=teacher.null_condition(),
        random=None,  # type: ignore[arg-type]
    )

    def spread(t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * 0.25 + t**2).sqrt()

    def average(r: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return rows((1 - spread(r) / spread(t)) / (t - r), x) * x

    def dual(network: Any, x: Tensor, dx: Tensor, t: Tensor, dt: Tensor, r: Tensor, dr: Tensor, *_: Any) -> Any:
        assert not dx.any() and not dt.any() and bool((dr == 1).all())
        return torch.func.jvp(lambda r: average(r, x, t), (r,), (dr,))

    monkeypatch.setattr(method, "average_velocity_dual", dual)
    x = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    t, r = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 1.0, 0.8, 0.6], [0.9, 0.2, 0.4, 0.1]))
    exact = average(r, x, t)
    found = method.map_target(teacher.network(), batch, 1.0, exact, x, t, r)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_stages_halve_by_themselves_and_the_last_one_takes_the_rest(tmp_path: Any) -> None:
    method = Progressive(ProgressiveConfig(first_steps=8, stage_length=10), make_teacher("flow", tmp_path / "pipeline"))
    assert [method.stage(step) for step in (0, 9, 10, 29, 30, 999)] == [0, 0, 1, 2, 3, 3]
    assert [step for step in range(100) if method.renewed(step)] == [10, 20, 30]


def test_reflow_s_later_rounds_solve_the_ode_of_the_student_that_was(tmp_path: Any) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    run = make_run(
        teacher, "reflow", rounds=2, round_length=5, solver_steps=1, solver_order=1, noise_share=1.0, **FIXED
    )
    assert [step for step in range(20) if run.method.renewed(step)] == [5]
    networks = dict(run.networks)
    networks[STUDENT] = copy.deepcopy(networks["before"])
    same = replace(run, networks=networks)
    assert float(same.losses(make_batch(teacher, 6)).by_network[STUDENT].max()) < 1e-10  # one Euler step of itself
    assert float(same.losses(make_batch(teacher, 4)).by_network[STUDENT].min()) > 1e-6


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("shortcut", {"smallest_jumps": 100}, "smallest_jumps"),
        ("shortcut", {"bootstrap_share": 1.5}, "bootstrap_share"),
        ("shortcut", {"target_decay": 1.0}, "target_decay"),
        ("rcgm", {"small_step": 0.0}, "small_step"),
        ("rcgm", {"target_jumps": 0}, "target_jumps"),
        ("twinflow", {"full_share": 0.6, "fake_share": 0.6}, "fake_share"),
        ("twinflow", {"rectify_weight": -1.0}, "rectify_weight"),
        ("twinflow", {"rectify_clip": 0.0}, "rectify_clip"),
        ("twinflow", {"latents_from": "student", "velocity_from": "data"}, "velocity_from"),
        ("progressive", {"first_steps": 12}, "first_steps"),
        ("progressive", {"stage_length": 0}, "stage_length"),
        ("progressive", {"repeat_share": 1.0}, "repeat_share"),
        ("reflow", {"solver_order": 3}, "solver_order"),
        ("reflow", {"rounds": 0}, "rounds"),
        ("reflow", {"noise_share": 2.0}, "noise_share"),
        ("imf", {"weight_power": -1.0}, "weight_power"),
        ("imf", {"weight_floor": 0.0}, "weight_floor"),
        ("freeflow", {"midway_share": 1.1}, "midway_share"),
        ("freeflow", {"fake_rate": 0.0}, "fake_rate"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        method_spec(name).config(**settings)
    assert error.value.hint
