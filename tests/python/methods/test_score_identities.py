"""What must be equal within the score distillation family, on mixtures in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.run import FastRandomNumbers
from ddx.bench.mixtures.teacher import MLP, PROCESSES, MixtureTeacher
from ddx.methods.base import FAKE, STUDENT, Batch, NetworkSpec
from ddx.methods.parts.score_distillation import Scores, score_gaps
from ddx.methods.registry import method_spec
from ddx.networks.guidance import INTERVAL, interval_input
from ddx.teachers.extra_input import find_embedder
from distilling import make_batch, make_teacher, make_trainer
from method_runs import SCORE_METHODS, STUDENTS_TURN, make_method

torch.set_num_threads(1)
NUM = 6


class DoubleRandomNumbers(FastRandomNumbers):
    def normal(self, *shape: int) -> Tensor:
        return super().normal(*shape).double()


def mixture_batch(teacher: MixtureTeacher) -> Batch:
    classes = torch.full((NUM,), teacher.mixture.num_classes)
    x0 = teacher.mixture.draw(classes, torch.Generator().manual_seed(1)).double()[:, :, None, None]
    random = DoubleRandomNumbers(5, NUM)
    return Batch(x0=x0, condition=teacher.condition(classes), null=teacher.null_condition(), random=random)


def mlp(teacher: MixtureTeacher, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(2, teacher.mixture.num_classes).double().requires_grad_(False)


def looked(name: str, teacher: MixtureTeacher, **settings: Any) -> tuple[Any, Tensor, Scores, Tensor]:
    """The method, x, what the scores see, and the loss of each row, all from the same random numbers."""
    method, batch = make_method(name, teacher, **settings), mixture_batch(teacher)
    x = (0.7 * batch.x0).requires_grad_()
    seen = method.look(x, batch, mlp(teacher, 3), 1.0)
    return method, x, seen, method.generator_loss(x, seen, batch).loss


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), x, retain_graph=True)[0]


@pytest.mark.parametrize("process", PROCESSES)
def test_sid_is_the_same_in_its_three_forms(process: str) -> None:
    teacher = MixtureTeacher(circle(), process)
    alpha = 1.2
    method, x, _, loss = looked("sid", teacher, alpha=alpha, time_sampling="shifted")  # whose times are those below
    batch = mixture_batch(teacher)
    fake, t = mlp(teacher, 3), 0.02 + 0.96 * batch.random.uniform()
    t = method.view.t_min + (method.view.t_max - method.view.t_min) * t
    noise, t4 = batch.random.normal(2, 1, 1), t[:, None, None, None]
    x_t = (1 - t4) * x + t4 * noise
    v_phi, v_psi = (method.view.velocity(net, x_t, t, batch.condition) for net in (teacher.exact, fake))
    e = noise - x
    flow = (t4 * (v_psi - v_phi) * ((e - v_phi) - alpha * (v_psi - v_phi))).flatten(1).sum(1)
    flow = flow / (e - v_phi).detach().abs().flatten(1).mean(1)

    eps_phi, eps_psi = (x_t + (1 - t4) * v for v in (v_phi, v_psi))
    ratio = t / (1 - t)  # sigma / alpha
    apart = eps_phi - eps_psi
    eps = ratio**2 * (apart * (eps_phi - noise) - alpha * apart**2).flatten(1).sum(1)
    eps = eps / (ratio * (eps_phi - noise).detach().abs().flatten(1).mean(1))
    for form in (flow, eps):
        torch.testing.assert_close(form, loss, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(gradient(form, x), gradient(loss, x), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_without_the_scores_gradients_sid_is_dmd_and_with_weight_one_diff_instruct(process: str) -> None:
    teacher = MixtureTeacher(circle(), process)
    _, x, seen, loss = looked("sid", teacher, score_gradients="none", alpha=1.2)
    stopped = gradient(loss, x)
    for name, settings in (("dmd2", {"gan_weight": 0.0}), ("dmd", {})):
        _, other_x, _, other = looked(name, teacher, **settings)
        torch.testing.assert_close(gradient(other, other_x), stopped, rtol=1e-9, atol=1e-12)
    weight = (x - seen.y_teacher).detach().abs().flatten(1).mean(1)[:, None, None, None]
    _, plain_x, _, plain = looked("diff-instruct", teacher)
    torch.testing.assert_close(gradient(plain, plain_x), stopped * weight, rtol=1e-9, atol=1e-12)
    _, whole_x, _, whole = looked("sid", teacher, alpha=1.2)
    assert (gradient(whole, whole_x) - stopped).norm() > 0.1 * stopped.norm()  # they do matter


def test_dmd_without_normaliser_and_discriminator_is_diff_instruct() -> None:
    teacher = MixtureTeacher(circle())
    _, x, _, loss = looked("dmd2", teacher, normalise=False, gan_weight=0.0)
    _, other_x, _, other = looked("diff-instruct", teacher)
    assert torch.equal(loss, other) and torch.equal(gradient(loss, x), gradient(other, other_x))


@pytest.mark.parametrize("process", ["flow", "vp-eps", "edm"])
def test_decoupled_dmd_is_two_terms_at_times_and_noises_of_their_own(process: str) -> None:
    teacher = MixtureTeacher(circle(num_classes=2), process, guidance=3.0)
    method, batch = make_method("decoupled-dmd", teacher, ca_weight=0.7), mixture_batch(teacher)
    batch = dataclasses.replace(batch, condition=teacher.condition(torch.arange(NUM) % 2))
    x, fake, random = (0.7 * batch.x0).requires_grad_(), mlp(teacher, 3), mixture_batch(teacher).random
    time = torch.linspace(0.3, method.view.t_max, NUM, dtype=torch.float64)
    seen = method.look(x, batch, fake, 3.0, time)
    t, dm_noise = method.times_at(random.uniform()), random.normal(2, 1, 1)
    share, ca_noise = random.uniform(), random.normal(2, 1, 1)
    t_ca = method.view.time_of_position(share * method.view.position(time)).clamp(min=method.view.t_min)
    torch.testing.assert_close((seen.t, seen.t_ca), (t, t_ca))

    def x0(network: nn.Module, t: Tensor, noise: Tensor, condition: Any) -> Tensor:
        t4 = t[:, None, None, None]
        x_t = (1 - t4) * x.detach() + t4 * noise
        return x_t - t4 * method.view.velocity(network, x_t, t, condition)

    def distance(y: Tensor) -> Tensor:
        return (y - x.detach()).abs().flatten(1).mean(1)[:, None, None, None]

    null = batch.null.expand(NUM)
    y_phi, y_psi = (x0(network, t, dm_noise, batch.condition) for network in (teacher.exact, fake))
    cond, uncond = (x0(teacher.exact, t_ca, ca_noise, condition) for condition in (batch.condition, null))
    expected = (y_psi - y_phi) / distance(y_phi) - 0.7 * 2.0 * (cond - uncond) / distance(cond + 2.0 * (cond - uncond))
    found = gradient(method.generator_loss(x, seen, batch).loss, x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_decoupled_dmd_at_one_time_is_dmd_with_guidance() -> None:
    teacher = MixtureTeacher(circle(num_classes=2), guidance=3.0)
    method, x, seen, _ = looked("decoupled-dmd", teacher, normalise=False, guidance_min=3.0, guidance_max=3.0)
    guided = seen.y_teacher + 2.0 * (seen.y_teacher - 0.5 * seen.y_fake)  # of some prediction without the caption
    together = dataclasses.replace(seen, y_guided=guided, y_unguided=seen.y_teacher)
    found = gradient(method.generator_loss(x, together, mixture_batch(teacher)).loss, x)
    torch.testing.assert_close(found, seen.y_fake - guided)


@pytest.mark.parametrize("process", ["flow", "vp-eps-sd"])
def test_guidance_acts_below_the_step_that_a_sample_comes_from(process: str) -> None:
    teacher = MixtureTeacher(circle(), process)
    method, num = make_method("decoupled-dmd", teacher), 4096
    classes = torch.full((num,), teacher.mixture.num_classes)
    batch = Batch(
        x0=torch.zeros(num, 2, 1, 1),
        condition=teacher.condition(classes),
        null=teacher.null_condition(),
        random=FastRandomNumbers(1, num),
    )
    time = method.view.times(2)[1].expand(num)
    t = method.look(batch.x0, batch, teacher.fitted, 1.0, time).t_ca
    assert float((t - time).max()) <= 0.0
    position = method.view.position(t) / method.view.position(time)  # of timesteps, where the process has them
    found = torch.histc(position.float(), 4, 0.0, 1.0) / num
    torch.testing.assert_close(found, torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_the_straight_through_copy_has_the_teacher_s_value_and_the_fake_score_s_derivative() -> None:
    teacher = MixtureTeacher(circle())
    _, x, seen, loss = looked("sid", teacher, score_gradients="fake")
    _, _, _, both = looked("sid", teacher)
    torch.testing.assert_close(loss, both)
    d, w = seen.y_teacher - seen.y_fake.detach(), (seen.y_teacher - x.detach()).abs().flatten(1).mean(1)
    by_hand = ((d * (seen.y_fake - x)).flatten(1).sum(1)) / w  # d is constant, y_phi moves as y_psi does
    torch.testing.assert_close(gradient(loss, x), gradient(by_hand, x), rtol=1e-9, atol=1e-12)


def test_stopped_share_and_the_schedule_of_alpha_follow_the_run() -> None:
    teacher = MixtureTeacher(circle())
    method = make_method("sid", teacher, stopped_share=0.3, alpha=1.0, alpha_end=1.2)
    batch = mixture_batch(teacher)
    assert method.looks_through(batch) == (False, False)
    assert method.looks_through(dataclasses.replace(batch, progress=0.3)) == (True, True)
    assert method.alpha_at(0.5) == pytest.approx(1.1)


@pytest.mark.parametrize("name", SCORE_METHODS)
def test_both_scores_stay_as_they_are_while_gradients_flow_through_them_into_x(name: str) -> None:
    trainer = make_trainer(MixtureTeacher(circle()).freeze_fitted(), method_spec(name).config(num_steps=1), method=name)
    networks = {key: value.module for key, value in trainer.trained.items()}
    for key, value in trainer.trained.items():
        value.activate(key == STUDENT)
    teacher = trainer.method.teacher
    assert isinstance(teacher, MixtureTeacher)
    batch = mixture_batch(teacher)
    batch = dataclasses.replace(batch, x0=batch.x0.float(), random=FastRandomNumbers(5, NUM))
    trainer.method.losses(STUDENTS_TURN, batch, networks).by_network[STUDENT].sum().backward()
    assert all(p.grad is None for key in networks if key != STUDENT for p in networks[key].parameters())
    assert all(p.grad is not None for p in networks[STUDENT].parameters())
    x = batch.x0.requires_grad_()
    seen = trainer.method.look(x, batch, networks[FAKE], 1.0)
    through = trainer.method.looks_through(batch)
    assert through == ((True, True) if name.startswith("sid") else (False, False))
    assert (seen.y_teacher.requires_grad, seen.y_fake.requires_grad) == through


def test_a_generator_of_several_steps_is_trained_at_the_states_of_its_sampler() -> None:
    teacher = MixtureTeacher(circle())
    method = make_method("sid", teacher, num_steps=3, start_time=0.9)
    student, batch, again = mlp(teacher, 4).requires_grad_(True), mixture_batch(teacher), mixture_batch(teacher)
    made = method.generate(student, batch, 1.0)
    x, u = again.random.normal(2, 1, 1), again.random.uniform()
    states, times = [x], [0.9, 0.6, 0.3]
    with torch.no_grad():
        for before, after in ((0.9, 0.6), (0.6, 0.3)):
            t = torch.full((NUM,), before, dtype=torch.float64)
            clean = x - before * method.view.velocity(student, x, t, again.condition)
            x = (1 - after) * clean + after * again.random.normal(2, 1, 1)
            states.append(x)
    chosen = (u * 3).long()
    assert len(set(chosen.tolist())) > 1
    start = torch.stack([states[k][row] for row, k in enumerate(chosen)])
    t = torch.tensor([times[k] for k in chosen], dtype=torch.float64)
    torch.testing.assert_close(made.start, start)
    torch.testing.assert_close(made.time, t)
    expected = start - t[:, None, None, None] * method.view.velocity(student, start, t, again.condition)
    torch.testing.assert_close(made.x, expected)
    parameters = list(student.parameters())
    found, wanted = (torch.autograd.grad(value.square().sum(), parameters) for value in (made.x, expected))
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["sid", "sid-lsg", "dmd2"])
def test_the_fake_score_of_several_steps_knows_where_its_input_comes_from(tmp_path: Path, name: str) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    spec = method_spec(name)
    assert find_embedder(make_method(name, teacher, num_steps=1).build(NetworkSpec(name=FAKE)), INTERVAL) is None
    assert find_embedder(make_method(name, teacher, num_steps=3).build(NetworkSpec(name=STUDENT)), INTERVAL) is None
    trainer = make_trainer(teacher, spec.config(num_steps=3), method=name, learning_rate=1e-2)
    for step in range(2):
        trainer.step(step, [make_batch(teacher, step)])
    fake, batch = trainer.trained[FAKE].module, make_batch(teacher)
    t = torch.full((4,), 0.5).double()
    found = []
    for time in (0.3, 1.0):
        with interval_input(fake, torch.full((4,), time)), torch.no_grad():
            found.append(trainer.method.fake_velocity(fake, batch.x0, t, batch, 1.5))
    assert float((found[0] - found[1]).norm()) > 1e-6


def test_the_gap_is_told_by_quarters_of_time() -> None:
    t = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64)
    zeros, ones = torch.zeros(3, 2, 1, 1), torch.ones(3, 2, 1, 1)
    gaps = score_gaps(Scores(x_t=zeros, t=t, y_teacher=ones * t[:, None, None, None].float(), y_fake=zeros))
    assert torch.allclose(gaps["score_gap"], torch.ones(3))
    known = {name: torch.isfinite(value).tolist() for name, value in gaps.items()}
    assert known["score_gap_t25"] == [True, False, False] and known["score_gap_t50"] == [False, True, False]
    assert known["score_gap_t75"] == [False] * 3 and known["score_gap_t100"] == [False, False, True]


def test_dde_looks_at_one_noise_level() -> None:
    _, _, seen, _ = looked("dde", MixtureTeacher(circle()), time_set=(0.4,))
    assert seen.t.tolist() == [0.4] * NUM


def test_dmd_regresses_on_where_the_ode_goes_with_the_order_of_its_solver() -> None:
    teacher = MixtureTeacher(circle())
    batch = mixture_batch(teacher)
    x = DoubleRandomNumbers(9, NUM).normal(2, 1, 1)

    def end(steps: int) -> Tensor:
        return make_method("dmd", teacher, regression_steps=steps).ode_end(x, batch, 1.0)

    fine = end(1024)
    assert 3.0 < float((end(64) - fine).norm() / (end(128) - fine).norm()) < 5.5
    method = make_method("dmd", teacher, regression_weight=0.5)
    student = mlp(teacher, 4)
    made = method.generate(student, batch, 1.0)
    seen = method.look(made.x, batch, mlp(teacher, 3), 1.0)
    second = method.second_loss(made, seen, batch, {}, 1.0)
    target = method.ode_end(made.start, batch, 1.0)
    torch.testing.assert_close(second, 0.5 * (made.x - target).square().flatten(1).mean(1))


def test_dmd_regresses_on_stored_pairs_what_it_draws_from_their_noise() -> None:
    teacher = MixtureTeacher(circle())
    noise = DoubleRandomNumbers(9, NUM).normal(2, 1, 1)
    batch = dataclasses.replace(mixture_batch(teacher), noise=noise)
    method, student = make_method("dmd", teacher, regression_weight=0.5, pairs="stored"), mlp(teacher, 4)
    assert method.reads_pairs and not make_method("dmd", teacher, regression_weight=0.0, pairs="stored").reads_pairs
    made = method.generate(student, batch, 1.0)
    seen = method.look(made.x, batch, mlp(teacher, 3), 1.0)
    second = method.second_loss(made, seen, batch, {STUDENT: student}, 1.0)
    t = torch.full((NUM,), method.first_time, dtype=torch.float64)
    drawn = method.predict_x0(student, method.view.start(noise, t[0]), t, batch.condition, 1.0)
    torch.testing.assert_close(second, 0.5 * (drawn - batch.x0).square().flatten(1).mean(1))
