from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Turn
from ddx.methods.meanflow import MeanFlow, MeanFlowConfig
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.networks.guidance import interval_input
from ddx.teachers.base import Teacher
from distilling import make_batch, make_teacher

torch.set_num_threads(1)
TURN = Turn(trains=(STUDENT,))
FIXED = {"guidance_min": 3.0, "guidance_max": 3.0}
ROWS = 8


def build(method: MeanFlow) -> nn.Module:
    """A student that is not its teacher, and in which the interval and the guidance do something."""
    torch.manual_seed(0)
    (spec,) = method.networks()
    student = method.build(spec)
    with torch.no_grad():
        for name, p in student.named_parameters():
            p.add_(0.05 * torch.randn(p.shape)) if "_embedder.last" in name else p.mul_(1.05)
    return student


def mixture_batch(teacher: MixtureTeacher) -> Batch:
    x0 = torch.randn(ROWS, 2, 1, 1, generator=torch.Generator().manual_seed(5)).double()
    condition, null = teacher.condition(torch.arange(ROWS) % 3), teacher.null_condition()
    return Batch(x0=x0, condition=condition, null=null, random=RandomNumbers(0, 0, range(ROWS)))


def column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_loss_and_gradient_equal_the_formula_in_float64(power: float) -> None:
    teacher = MixtureTeacher(circle(num_classes=2), "flow")
    method = MeanFlow(MeanFlowConfig(error_power=power, same_time_share=0.3, **FIXED), teacher)
    student, batch = build(method).double(), mixture_batch(teacher)
    found = method.losses(TURN, batch, {STUDENT: student}).by_network[STUDENT]

    again = RandomNumbers(0, 0, range(ROWS))
    first, second = (torch.sigmoid(-0.4 + torch.special.ndtri(again.uniform())) for _ in range(2))
    same = again.uniform() < 0.3
    assert same.any() and not same.all()
    again.uniform()  # the guidance
    noise = again.normal(2, 1, 1).double()
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    r = torch.where(same, t, r)
    x = column(1 - t) * batch.x0 + column(t) * noise

    def u(x: Tensor, t: Tensor) -> Tensor:
        with interval_input(student, t - r):
            return teacher.predict(student, x, t, batch.condition)

    cond = teacher.predict(teacher.network(), x, t, batch.condition)
    null = teacher.predict(teacher.network(), x, t, batch.null.expand(ROWS))
    v = null + 3.0 * (cond - null)
    with torch.no_grad():
        h = 1e-4  # the embedder computes in float32
        slope = (u(x + h * v, t + h) - u(x - h * v, t - h)) / (2 * h)
    error = (u(x, t) - (v - column(t - r) * slope)).square().flatten(1).sum(1)
    expected = error / (error.detach() + 1e-3) ** power
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)

    ours, theirs = (torch.autograd.grad(loss.sum(), list(student.parameters())) for loss in (found, expected))
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine - right).norm() < 5e-3 * right.norm() + 1e-6


@pytest.mark.parametrize("process", PROCESSES)
def test_the_exact_derivative_is_that_of_differences(process: str) -> None:
    teacher = MixtureTeacher(circle(num_classes=2), process)
    batch = mixture_batch(teacher)
    v = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1)).double()
    t = torch.linspace(0.3, 0.8, ROWS, dtype=torch.float64)
    found = []
    for kind in ("dual", "finite"):
        method = MeanFlow(MeanFlowConfig(jvp=kind, jvp_step=1e-4), teacher)
        found.append(method.derivative(build(method).double(), batch.x0, v, t, 0.5 * t, batch, 1.0))
    apart = (found[0] - found[1]).flatten(1).norm(dim=1) / found[0].flatten(1).norm(dim=1)
    # units that are rectified have kinks: a difference may straddle one in a row, and then in few of them
    assert float(apart.sort().values[: int(0.8 * ROWS)].max()) < 5e-3
    without = method.derivative(build(method).double(), batch.x0, v, t, t, batch, 1.0)
    assert (found[0] - without).norm() > 1e-2 * found[0].norm()  # the interval takes part in it


def test_at_one_time_the_target_is_the_velocity_itself() -> None:
    teacher = MixtureTeacher(circle(num_classes=2), "flow")
    settings = {"guidance_min": 1.0, "guidance_max": 1.0, "same_time_share": 1.0, "error_power": 0.0}
    method = MeanFlow(MeanFlowConfig(**settings), teacher)  # type: ignore[arg-type]
    exact = method.losses(TURN, mixture_batch(teacher), {STUDENT: teacher.network()})
    assert exact.by_network[STUDENT].abs().max() < 1e-10


@pytest.mark.parametrize(
    ("source", "teacher"),
    [("teacher", "flow"), ("data", "eps"), ("teacher", "v"), ("data", "flow")],
    indirect=["teacher"],
)
def test_the_loss_reaches_every_parameter_of_the_student_and_nothing_else(teacher: Teacher, source: str) -> None:
    config = MeanFlowConfig(guidance_min=2.0, guidance_max=4.0, same_time_share=0.25, velocity_from=source)
    method = MeanFlow(config, teacher)
    student = build(method)
    method.losses(TURN, make_batch(teacher), {STUDENT: student}).by_network[STUDENT].sum().backward()
    missing = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    if teacher.prediction == "flow":  # attention over keys is blind to one constant added to all of them
        missing = [name for name in missing if not name.endswith("to_k.bias")]
    assert missing == []
    assert all(p.grad is None for p in teacher.network().parameters())


def test_guidance_and_interval_change_the_output_and_are_folded_away(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    method = MeanFlow(MeanFlowConfig(guidance_min=2.0, guidance_max=6.0), teacher)
    student, batch, t = build(method), make_batch(teacher), torch.full((4,), 0.5).double()

    def velocity(guidance: float, interval: float) -> Tensor:
        with torch.no_grad():
            return method.jump_velocity(student, batch.x0, t, interval, batch.condition, guidance)

    here = velocity(method.export_guidance, 0.5)
    assert (velocity(6.0, 0.5) - velocity(2.0, 0.5)).norm() > 1e-4 * here.norm()
    assert (velocity(method.export_guidance, 0.25) - here).norm() > 1e-4 * here.norm()
    plain = method.plain_network(student, num_steps=2)
    assert plain.state_dict().keys() == teacher.network().state_dict().keys()
    torch.testing.assert_close(method.view.velocity(plain, batch.x0, t, batch.condition), here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"error_power": 1.5}, "error_power"),
        ({"same_time_share": -0.1}, "same_time_share"),
        ({"jvp_step": 0.0}, "jvp_step"),
        ({"time_std": 0.0}, "time_std"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        MeanFlowConfig(**settings)
    assert error.value.hint
