"""The score distillation family on real denoisers: its losses by hand, who gets gradients, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.methods.base import FAKE, STUDENT
from ddx.methods.parts.weighting import denoising_loss
from ddx.methods.registry import method_spec
from ddx.teachers.base import Teacher
from distilling import AT_ONCE, assert_gradients_reach_their_networks, in_turns, make_batch, make_teacher, make_trainer
from method_runs import FAKES_TURN, SCORE_METHODS, STUDENTS_TURN, make_method

torch.set_num_threads(1)


def test_losses_equal_the_formulas_by_hand(teacher: Teacher) -> None:
    """Every prediction kind through its own algebra; the same draws for each method, so one calculation serves all."""
    batch, guidance = make_batch(teacher), 3.0
    shape = batch.x0.shape[1:]
    both = {
        "guidance_min": guidance,
        "guidance_max": guidance,
        "start_time": 0.714,
        "num_steps": 1,
        "time_shift": 2.0,
        "denoising_weight": "none",
    }
    student, fake = (teacher.new_student_network() for _ in range(2))
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1.03)
        for p in fake.parameters():
            p.mul_(0.97)
    networks = {STUDENT: student, FAKE: fake}
    process, random = teacher.process, batch.random
    random.uniform()  # guidance
    z = random.normal(*shape).double()
    random.uniform()  # which of one step
    if teacher.prediction == "flow":
        first, scale = 0.714, 1.0
    else:
        tau = 0.714
        first = float(
            process.time_of_position(process.position(process.time_at(torch.tensor(tau / (1 - tau)).atan()))).round()
        )
        alpha, sigma = (float(f(torch.tensor(first))) for f in (process.alpha, process.sigma))
        scale = 1.0 / (alpha + sigma)

    def x0(network: nn.Module, flow_x: Tensor, time: Tensor, scale: float | None = None) -> Tensor:
        """From a state on the flow path, and the process's own time."""
        alpha, sigma = (f(time)[:, None, None, None] for f in (process.alpha, process.sigma))
        state = flow_x * (alpha + sigma)

        def ask(condition: Any) -> Tensor:
            return teacher.predict(network, state.float(), time, condition.expand(4)).double()

        p = ask(batch.condition)
        if scale is not None:
            p = ask(batch.null) + scale * (p - ask(batch.null))
        match teacher.prediction:
            case "flow":
                return state - sigma * p
            case "eps":
                return (state - sigma * p) / alpha
        return alpha * state - sigma * p

    x = x0(student, scale * z, torch.full((4,), first, dtype=torch.float64))
    u = 0.02 + 0.96 * random.uniform()
    low, high = (0.0, 1.0)
    if teacher.prediction != "flow":
        low, high = (float(process.flow_time(torch.tensor(t).double())) for t in (0.0, process.t_max))
    tau = low + (high - low) * 2 * u / (1 + u)
    time = tau if teacher.prediction == "flow" else process.time_at(torch.atan2(tau, 1 - tau))
    noise, tau4 = random.normal(*shape).double(), tau[:, None, None, None]
    x_t = (1 - tau4) * x + tau4 * noise
    y_phi, y_psi = x0(teacher.network(), x_t, time, guidance), x0(fake, x_t, time)
    n, w = x[0].numel(), (y_phi - x).abs().flatten(1).mean(1)
    d = y_phi - y_psi
    wanted = {
        "sid": (d * (y_phi - x) - 1.1 * d**2).flatten(1).sum(1) / w / n,
        "diff-instruct": 0.5 * (d**2).flatten(1).sum(1) / n,
        "dmd2": 0.5 * (d**2).flatten(1).sum(1) / w**2 / n,
    }
    special: dict[str, Any] = {"sid": {"alpha": 1.1}, "dmd2": {"gan_weight": 0.0}}
    for name, loss in wanted.items():
        method = make_method(name, teacher, **both, **special.get(name, {}))
        found = method.losses(STUDENTS_TURN, make_batch(teacher), networks)
        torch.testing.assert_close(found.by_network[STUDENT].double(), loss, rtol=2e-3, atol=1e-5)
        assert not found.dropped[STUDENT].any()
        of_fake = method.losses(FAKES_TURN, make_batch(teacher), networks).by_network[FAKE]
        velocity = (x_t - y_psi) / tau4
        expected = (velocity - (noise - x)).square().flatten(1).mean(1)
        torch.testing.assert_close(of_fake.double(), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["sid", "sid-lsg", "dmd", "dmd2", "diff-instruct"])
def test_times_and_the_fake_score_s_weight_are_those_of_the_teacher_s_process(name: str, teacher: Teacher) -> None:
    method = make_method(name, teacher)
    u = (torch.arange(9600, dtype=torch.float64) + 0.5) / 9600
    t = method.times_at(u)
    if teacher.prediction == "flow":
        torch.testing.assert_close(t, 0.02 + 0.96 * u)
    else:
        steps = method.view.process.time_at(torch.atan2(t, 1.0 - t))
        torch.testing.assert_close(steps, 20.0 + (960.0 * u).floor(), rtol=0, atol=1e-6)
        shares = torch.histc(steps.round().float(), 4, 0.0, 1000.0) / 9600
        torch.testing.assert_close(shares, torch.tensor([230.0, 250.0, 250.0, 230.0]) / 960.0)
    # by quarter of the times, what the same error of eps counts
    error = (torch.ones_like(t) / (1.0 - t))[:, None, None, None]  # of the flow velocity
    loss = denoising_loss(method.config, error, torch.zeros_like(error), t, method.fake_weight).loss
    counts = loss.reshape(4, -1).mean(1)
    assert (float(counts.max() / counts.min()) < 1.001) is (teacher.prediction != "flow")


def test_dmd2_s_fake_score_may_look_at_all_times(teacher: Teacher) -> None:
    method = make_method("dmd2", teacher, fake_time_low=0.0, fake_time_high=1.0)
    batch, u = make_batch(teacher), torch.tensor([0.0, 1.0 - 1e-9], dtype=torch.float64)
    low, high = method.times_at(u).tolist()
    if teacher.prediction == "flow":
        assert (low, high) == (0.0, pytest.approx(1.0))
    else:
        ends = method.view.process.flow_time(torch.tensor([0.0, 999.0], dtype=torch.float64)).tolist()
        assert (low, high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    drawn = make_method("dmd2", teacher).score_times(batch)  # the student's are not moved by it
    torch.testing.assert_close(method.score_times(make_batch(teacher)), drawn)


def test_a_shift_and_a_named_distribution_outrank_the_teacher_s_timesteps(teacher: Teacher) -> None:
    u = torch.tensor([0.25], dtype=torch.float64)
    shift, named = (make_method("sid", teacher, **one) for one in ({"time_shift": 2.0}, {"time_sampling": "uniform"}))
    low, length, share = shift.view.t_min, shift.view.t_max - shift.view.t_min, 0.02 + 0.96 * u
    torch.testing.assert_close(named.times_at(u), low + length * share)
    torch.testing.assert_close(shift.times_at(u), low + length * 2 * share / (1 + share))
    if teacher.prediction == "flow":
        with pytest.raises(UsageError, match="timesteps") as error:
            make_method("sid", teacher, time_sampling="timesteps")
        assert error.value.hint


@pytest.mark.parametrize(("name", "teacher"), in_turns(SCORE_METHODS), indirect=["teacher"])
def test_a_turn_s_loss_reaches_all_of_what_it_trains_and_nothing_else(teacher: Teacher, name: str) -> None:
    # of several steps, the embedder of the step that a fake score comes from begins with a last layer of zero
    trainer = make_trainer(teacher, method_spec(name).config(num_steps=1), method=name)
    # attention over keys is blind to one constant added to all of them
    assert_gradients_reach_their_networks(trainer, *(["to_k.bias"] if teacher.prediction == "flow" else []))


@pytest.mark.parametrize("name", SCORE_METHODS)
def test_a_trained_range_of_guidance_is_an_input_of_student_and_fake_score(tmp_path: Path, name: str) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    spec = method_spec(name)
    config = spec.config(guidance_min=1.0, guidance_max=6.0, **AT_ONCE.get(name, {}))
    trainer = make_trainer(teacher, config, method=name, learning_rate=1e-2)
    noise = [make_batch(teacher).x0]
    condition = make_batch(teacher).condition
    for step in range(2):
        trainer.step(step, [make_batch(teacher, step)])
    low, high = (trainer.method.draw(trainer.student, noise, condition, guidance=g) for g in (1.0, 6.0))
    assert float((low - high).norm()) > 1e-6
    fake = trainer.trained[FAKE].module
    assert dict(fake.named_parameters())["guidance_embedder.last.weight"].any()


def test_lsg_at_guidance_one_is_sid_and_otherwise_guides_the_fake_score(teacher: Teacher) -> None:
    student, fake = (teacher.new_student_network() for _ in range(2))
    with torch.no_grad():
        for p in fake.parameters():
            p.mul_(0.97)
    networks = {STUDENT: student, FAKE: fake}
    one = {"guidance_min": 1.0, "guidance_max": 1.0}
    for turn in (STUDENTS_TURN, FAKES_TURN):
        (name,) = turn.trains
        sid, lsg = (
            make_method(kind, teacher, **one).losses(turn, make_batch(teacher), networks) for kind in ("sid", "sid-lsg")
        )
        torch.testing.assert_close(lsg.by_network[name], sid.by_network[name])
    method = make_method("sid-lsg", teacher, kappa1=2.0, kappa2=3.0, kappa4=4.0)
    batch = make_batch(teacher)
    x, t = batch.x0, torch.full((4,), 0.5).double()

    def velocity(network: nn.Module, scale: float) -> Tensor:
        null, cond = (method.view.velocity(network, x, t, c.expand(4)) for c in (batch.null, batch.condition))
        return null + scale * (cond - null)

    for found, expected in (
        (method.trained_fake_velocity(fake, x, t, batch, 1.5), velocity(fake, 2.0)),
        (method.fake_velocity(fake, x, t, batch, 1.5), velocity(fake, 3.0)),
        (method.teacher_velocity(x, t, batch, 1.5), velocity(teacher.network(), 4.0)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_fake_score_is_updated_as_often_as_asked(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    trainer = make_trainer(teacher, method_spec("sid").config(fake_updates=3, fake_rate=0.5), method="sid")
    trainer.step(0, [make_batch(teacher)])
    assert trainer.snapshot().state["num_steps"] == {STUDENT: 1, FAKE: 3}
    assert trainer.trained[FAKE].learning_rate == pytest.approx(0.5 * trainer.trained[STUDENT].learning_rate)


@pytest.mark.parametrize(("name", "settings"), [("dmd2", {}), ("ladd", {"noise_share": 0.0})])
def test_what_simulates_the_sampler_trains_at_its_times(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    teacher, times = make_teacher("flow", tmp_path / "teacher"), (0.95, 0.783)
    method = make_method(name, teacher, num_steps=2, student_times=times, **settings)
    student, batch = method.build(method.networks()[0]), make_batch(teacher)
    asked = method.generate(student, batch, 1.0).time if name == "dmd2" else method.start(batch)[1]
    assert method.first_time == times[0] and {*asked.tolist()} == {*times}


def test_tdm_matches_each_step_of_the_path_that_its_student_draws_along(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "teacher")
    method = make_method("tdm", teacher, num_steps=2, student_times=(1.0, 0.6))
    student, ends = method.build(method.networks()[0]), set()
    for number in range(2):
        batch = make_batch(teacher, number)
        made = method.generate(student, batch, 1.0)
        velocity = (made.start - made.x) / made.time.float().reshape(-1, 1, 1, 1)
        stepped = made.start + (made.end - made.time).float().reshape(-1, 1, 1, 1) * velocity
        torch.testing.assert_close(made.x_end, stepped, rtol=1e-4, atol=1e-4)
        t = method.times_within(made, batch)
        assert bool((t > made.end).all()) and bool((t < made.time).all())
        ends |= {*zip(made.time.tolist(), made.end.tolist(), strict=True)}
        noise = make_batch(teacher, number).random.normal(*batch.x0.shape[1:])
        drawn = method.draw(student, [noise, noise], batch.condition, guidance=1.0)
        last = made.end == 0.0  # the end of the path is what is drawn
        torch.testing.assert_close(made.x_end[last], drawn[last], rtol=1e-4, atol=1e-4)
    assert ends == {(1.0, 0.6), (0.6, 0.0)}


@pytest.mark.parametrize(("name", "kind"), [("shortcut", "flow"), ("reflow", "v")])
def test_a_sampler_of_equal_steps_is_given_no_times(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(UsageError, match="draws in equal steps") as error:
        make_method(name, make_teacher(kind, tmp_path / "teacher"), student_times=(1.0, 0.783))
    assert error.value.hint == "leave --student-times away"


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("sid", {"num_steps": 0}, "num_steps"),
        ("sid", {"start_time": 0.0}, "start_time"),
        ("sid", {"start_time": 1.5}, "start_time"),
        ("sid", {"time_low": 0.9, "time_high": 0.5}, "time_low"),
        ("sid", {"stopped_share": 1.5}, "stopped_share"),
        ("sid", {"fake_updates": 0}, "fake_updates"),
        ("sid", {"fake_rate": 0.0}, "fake_rate"),
        ("sid-lsg", {"kappa2": 0.0}, "kappa2"),
        ("dmd", {"num_steps": 2}, "num_steps"),
        ("dmd2", {"student_times": (1.0, 0.783)}, "student_times"),
        ("ladd", {"student_times": (1.0, 0.783)}, "student_times"),
        ("lcm", {"student_times": (0.5, 0.783)}, "student_times"),
        ("lcm", {"student_times": (1.0, 0.0)}, "student_times"),
        ("dmd", {"regression_weight": -1.0}, "regression_weight"),
        ("dmd2", {"gan_weight": -1.0}, "gan_weight"),
        ("dmd2", {"fake_time_low": 0.98}, "fake score's times"),
        ("dde", {"time_set": (0.3, 0.5)}, "time_set"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        method_spec(name).config(**settings)
    assert error.value.hint
