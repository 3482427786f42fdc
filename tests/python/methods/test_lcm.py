from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, TARGET, Turn
from ddx.methods.lcm import LCM, LCMConfig, solver_grid
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.parts.time_sampling import intervals_at
from ddx.process import FlowProcess, VPProcess
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from distilling import KINDS, make_batch, make_teacher, make_trainer, read_meter

torch.set_num_threads(1)
TURN = Turn(trains=(STUDENT,))


def test_training_lowers_the_loss_and_moves_the_student_and_its_target_only(teacher: Teacher) -> None:
    trainer = make_trainer(teacher, LCMConfig(target_decay=0.9))
    before = copy.deepcopy(teacher.network().state_dict())
    start = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    # the same noise and times at every step, so that the loss is comparable
    losses = []
    for _ in range(12):
        trainer.step(0, [make_batch(teacher)])
        losses.append(read_meter(trainer)["loss"])
    assert losses[-1] is not None and losses[0] is not None and losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.network().state_dict().items())
    assert all(p.grad is None for p in teacher.network().parameters())
    target = dict(trainer.averages[TARGET][0].named_parameters())
    moved = [name for name, value in trainer.student.named_parameters() if not torch.equal(value, start[name])]
    assert len(moved) > 0.9 * len(start)
    for name in moved:
        gap = (dict(trainer.student.named_parameters())[name] - start[name]).norm()
        assert 0 < (target[name] - start[name]).norm() < gap, name


def test_the_loss_reaches_every_parameter_of_the_student(teacher: Teacher) -> None:
    method = LCM(LCMConfig(), teacher)
    student, target = (method.build(spec) for spec in method.networks())
    losses = method.losses(TURN, make_batch(teacher), {STUDENT: student, TARGET: target})
    losses.by_network[STUDENT].sum().backward()
    # behind the embedder's zero last layer nothing has a gradient at the first step
    silent = {"guidance_embedder.hidden.weight", "guidance_embedder.hidden.bias"}
    missing = [n for n, p in student.named_parameters() if p.grad is None or (n not in silent and not p.grad.any())]
    if teacher.prediction == "flow":  # attention over keys is blind to one constant added to all of them
        missing = [name for name in missing if not name.endswith("to_k.bias")]
    assert missing == []
    assert all(p.grad is None for p in target.parameters())


def test_loss_equals_the_formula_in_float64(teacher: Teacher) -> None:
    config = LCMConfig(guidance_min=3.0, guidance_max=3.0, solver_steps=10, huber_c=0.01)
    method = LCM(config, teacher)
    student, target = (method.build(spec) for spec in method.networks())
    with torch.no_grad():  # a student that differs from its target and its teacher
        for p in student.parameters():
            p.mul_(1.05)
    batch = make_batch(teacher)
    loss = method.losses(TURN, batch, {STUDENT: student, TARGET: target}).by_network[STUDENT]

    again = make_batch(teacher)
    expected = _by_hand(teacher, config, again.random, again.x0, again.condition, again.null, student, target)
    assert torch.allclose(loss.double(), expected, rtol=2e-4, atol=1e-7)


@torch.no_grad()
def _by_hand(
    teacher: Teacher,
    config: LCMConfig,
    random: RandomNumbers,
    x0: Tensor,
    condition: Condition,
    null: Condition,
    student: torch.nn.Module,
    target: torch.nn.Module,
) -> Tensor:
    """Luo et al. 2023, equations 9 to 14, written out for each prediction kind, one row at a time."""
    n = [int(u * config.solver_steps) + 1 for u in random.uniform().tolist()]
    random.uniform()  # the guidance
    noise = random.normal(*x0.shape[1:]).double()
    rows = []
    for row, index in enumerate(n):
        here = condition.index(row)
        if teacher.prediction == "flow":
            t, r = index / config.solver_steps, (index - 1) / config.solver_steps
            alphas, sigmas = (1 - t, 1 - r), (t, r)
        else:
            stride = 1000 // config.solver_steps
            t, r = float(index * stride - 1), float(max((index - 1) * stride - 1, 0))
            table = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
            bars = (float(table[int(t)]), float(table[int(r)]))
            alphas, sigmas = tuple(b**0.5 for b in bars), tuple((1 - b) ** 0.5 for b in bars)

        def clean(x: Tensor, p: Tensor, alpha: float, sigma: float) -> Tensor:
            match teacher.prediction:
                case "flow":
                    return x - sigma * p
                case "eps":
                    return (x - sigma * p) / alpha
            return alpha * x - sigma * p

        def f(network: torch.nn.Module, x: Tensor, time: float, alpha: float, sigma: float, here=here) -> Tensor:
            p = teacher.predict(network, x.float(), torch.tensor([time]).double(), here).double()
            x_clean = clean(x, p, alpha, sigma)
            if teacher.prediction == "flow":
                return x_clean
            scaled = 10.0 * time
            return (0.25 * x / (scaled**2 + 0.25)) + scaled * x_clean / (scaled**2 + 0.25) ** 0.5

        x_t = alphas[0] * x0[row : row + 1].double() + sigmas[0] * noise[row : row + 1]
        time = torch.tensor([t]).double()
        uncond = teacher.predict(teacher.network(), x_t.float(), time, null).double()
        cond = teacher.predict(teacher.network(), x_t.float(), time, here).double()
        guided = uncond + 3.0 * (cond - uncond)
        x_clean = clean(x_t, guided, alphas[0], sigmas[0])
        x_r = alphas[1] * x_clean + sigmas[1] * (x_t - alphas[0] * x_clean) / sigmas[0]
        d = f(student, x_t, t, alphas[0], sigmas[0]) - f(target, x_r, r, alphas[1], sigmas[1])
        rows.append(((d**2 + config.huber_c**2).sqrt() - config.huber_c).mean())
    return torch.stack(rows)


def _poison_guided(teacher: Teacher, monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """Let the teacher's guided prediction be NaN in one row."""
    guided = teacher.guided

    def poisoned(*arguments: Any) -> Tensor:
        prediction = guided(*arguments).clone()
        prediction[row, 0, 0, 0] = float("nan")
        return prediction

    monkeypatch.setattr(teacher, "guided", poisoned)


def test_a_row_that_the_teacher_spoils_is_dropped_and_no_other(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = LCM(LCMConfig(), teacher)
    student, target = (method.build(spec) for spec in method.networks())
    networks = {STUDENT: student, TARGET: target}
    kept = [0, 1, 3]

    def gradient(rows: Tensor) -> Tensor:
        found = torch.autograd.grad(rows.sum(), list(student.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    clean = method.losses(TURN, make_batch(teacher), networks)
    assert clean.dropped[STUDENT].tolist() == [False] * 4
    of_kept = gradient(clean.by_network[STUDENT][kept])
    _poison_guided(teacher, monkeypatch, 2)
    broken = method.losses(TURN, make_batch(teacher), networks)
    assert broken.dropped[STUDENT].tolist() == [False, False, True, False]
    assert broken.by_network[STUDENT][2] == 0
    assert torch.equal(broken.by_network[STUDENT][kept], clean.by_network[STUDENT][kept])
    torch.testing.assert_close(gradient(broken.by_network[STUDENT]), of_kept)


def test_a_step_goes_on_without_dropped_rows_and_tells_their_share(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(teacher, LCMConfig(target_decay=0.9))
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    rows = trainer.method.losses(
        TURN, make_batch(teacher), {STUDENT: trainer.student, TARGET: trainer.averages[TARGET][0]}
    ).by_network[STUDENT]
    _poison_guided(teacher, monkeypatch, 2)
    trainer.step(0, [make_batch(teacher)])
    values = read_meter(trainer)
    assert values["dropped"] == 0.25
    assert values["loss"] == pytest.approx(rows.detach()[[0, 1, 3]].mean().item())  # of the rows that count
    assert int(trainer.skipped) == 0
    assert any(not torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())


def test_one_batch_and_its_micro_batches_give_the_same_gradient(teacher: Teacher) -> None:
    gradients = []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        trainer = make_trainer(teacher, LCMConfig(target_decay=0.0), clip_norm=1e9)
        captured = []
        trainer.trained[STUDENT].optimizer.register_step_pre_hook(
            lambda optimizer, *_, into=captured: into.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"]
            )
        )
        trainer.step(3, [make_batch(teacher, 3, rows=part) for part in parts])
        gradients.append(torch.cat([g.flatten() for g in captured]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_the_vp_grid_is_the_paper_s() -> None:
    process = VPProcess(betas=torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    grid = solver_grid(process, 50)
    assert grid[0] == 0 and grid[1:].tolist() == [20.0 * n - 1 for n in range(1, 51)]


def test_the_flow_grid_ends_at_both_ends_and_shifts_towards_noise() -> None:
    assert torch.allclose(solver_grid(FlowProcess(), 4), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double())
    shifted = solver_grid(FlowProcess(), 4, shift=3.0)
    assert torch.allclose(shifted, torch.tensor([0.0, 0.5, 0.75, 0.9, 1.0]).double())


def test_boundary_of_the_vp_student_is_the_identity_at_zero(tmp_path: Path) -> None:
    teacher = make_teacher("eps", tmp_path / "pipeline")
    method = LCM(LCMConfig(), teacher)
    batch = make_batch(teacher)
    clean = method.consistency(teacher.network(), batch.x0, torch.zeros(4).double(), batch.condition, 6.0)
    assert torch.equal(clean, batch.x0)


def test_a_curriculum_doubles_the_grid_at_equal_shares() -> None:
    assert [intervals_at(p, 20, 5) for p in (0.0, 0.3, 0.4, 0.7, 0.99)] == [5, 5, 10, 20, 20]
    assert intervals_at(0.0, 50, None) == 50


def test_several_solver_substeps_come_closer_to_the_ode(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    batch = make_batch(teacher)
    t, r = torch.ones(4).double(), torch.full((4,), 0.5).double()

    def step(substeps: int) -> Tensor:
        method = LCM(LCMConfig(solver_substeps=substeps), teacher)
        return method.teacher_step(batch.x0, t, r, batch.condition, batch.null, 3.0)

    fine = step(32)
    assert (step(4) - fine).norm() < 0.5 * (step(1) - fine).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_the_solver_falls_by_its_order(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On normal data of variance s^2 the ODE is known: x keeps its ratio to the standard deviation of its time."""
    teacher = make_teacher(kind, tmp_path / "pipeline")
    batch, process, variance = make_batch(teacher), teacher.process, 0.25
    t, r = (torch.full((4,), share * process.t_max).double() for share in (0.9, 0.3))

    def spread(time: Tensor) -> Tensor:
        return (process.alpha(time) ** 2 * variance + process.sigma(time) ** 2).sqrt()

    def exact(network: object, x: Tensor, time: Tensor, *condition: object) -> Tensor:
        x0 = (process.alpha(time) * variance / spread(time) ** 2)[:, None, None, None] * x
        return process.convert(x0, x, time, "x0", teacher.prediction)

    monkeypatch.setattr(teacher, "guided", exact)
    x_t = batch.x0.double()
    truth = (spread(r) / spread(t))[:, None, None, None] * x_t

    def error(substeps: int, order: int) -> float:
        method = LCM(LCMConfig(solver_substeps=substeps, solver_order=order), teacher)
        return float((method.teacher_step(x_t, t, r, batch.condition, batch.null, 3.0) - truth).norm())

    assert error(64, 1) / error(32, 1) == pytest.approx(1 / 2, rel=0.15)
    assert error(64, 2) / error(32, 2) == pytest.approx(1 / 4, rel=0.15)
    assert error(32, 2) < 0.2 * error(32, 1)


def test_the_second_order_bears_an_interval_of_no_length(tmp_path: Path) -> None:
    teacher = make_teacher("eps", tmp_path / "pipeline")
    batch, zero = make_batch(teacher), torch.zeros(4).double()
    method = LCM(LCMConfig(solver_substeps=3, solver_order=2), teacher)
    stayed = method.teacher_step(batch.x0, zero, zero, batch.condition, batch.null, 3.0)
    torch.testing.assert_close(stayed, batch.x0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"guidance_min": 5.0, "guidance_max": 4.0}, "guidance_min"),
        ({"solver_steps": 0}, "solver_steps"),
        ({"solver_order": 3}, "solver_order"),
        ({"solver_steps": 8, "solver_steps_start": 16}, "solver_steps_start"),
        ({"target_decay": 1.0}, "target_decay"),
        ({"huber_c": 0.0}, "huber_c"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        LCMConfig(**settings)  # type: ignore[arg-type]
    assert error.value.hint


def test_a_process_that_it_is_not_published_for_is_refused() -> None:
    with pytest.raises(UsageError, match="flow and VP teachers; mixture-edm is of edm"):
        LCM(LCMConfig(), MixtureTeacher(circle(), "edm"))
