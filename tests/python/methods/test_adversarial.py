"""Adversarial losses by hand, the heads, and the methods that are made of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.errors import UsageError
from ddx.methods.base import FAKE, STUDENT, Turn
from ddx.methods.parts.adversarial import (
    DISCRIMINATOR,
    LOSSES,
    accuracy,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    pooled,
)
from ddx.methods.parts.flow_view import FlowView
from ddx.methods.registry import method_spec
from ddx.methods.scm import SCM
from ddx.networks.heads import KINDS as HEADS
from ddx.networks.heads import Discriminator, frequency_bands, normalised
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from distilling import KINDS, assert_gradients_reach_their_networks, make_batch, make_teacher, make_trainer
from method_runs import make_method

torch.set_num_threads(1)
ADVERSARIAL = ("ladd", "sana-sprint", "dmd2")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("kind", LOSSES)
def test_the_losses_are_those_of_their_papers(kind: str) -> None:
    real, fake = torch.tensor([[0.4, 2.0], [-1.0, 0.1]]), torch.tensor([[0.3, -3.0], [1.5, 0.0]])
    of_d, of_g = [], []
    for r, f in zip(real.tolist(), fake.tolist(), strict=True):
        pairs = list(zip(r, f, strict=True))
        match kind:
            case "hinge":
                of_d.append(sum(max(0.0, 1 - a) + max(0.0, 1 + b) for a, b in pairs) / 2)
                of_g.append(sum(-b for _, b in pairs) / 2)
            case "softplus":
                of_d.append(sum(softplus(-a) + softplus(b) for a, b in pairs) / 2)
                of_g.append(sum(softplus(-b) for _, b in pairs) / 2)
            case "relativistic":
                of_d.append(sum(softplus(b - a) for a, b in pairs) / 2)
                of_g.append(sum(softplus(a - b) for a, b in pairs) / 2)
    torch.testing.assert_close(discriminator_loss(kind, real, fake), torch.tensor(of_d))
    right = [
        sum((a > b) if kind == "relativistic" else ((a > 0) + (b < 0)) / 2 for a, b in zip(r, f, strict=True)) / 2
        for r, f in zip(real.tolist(), fake.tolist(), strict=True)
    ]
    torch.testing.assert_close(accuracy(kind, real, fake), torch.tensor(right))
    torch.testing.assert_close(generator_loss(kind, fake, real), torch.tensor(of_g))


def test_the_gradient_penalty_is_exact_and_its_difference_has_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 1, 1, generator=generator, dtype=torch.float64)
    weight = torch.tensor([0.7, -1.3], dtype=torch.float64, requires_grad=True)

    def logits(value: Tensor) -> Tensor:
        flat = value.flatten(1)
        return torch.stack([(flat * weight).sum(1).tanh(), flat.square().sum(1)], dim=1)

    flat = x.flatten(1)
    inner = 1 - (flat * weight).sum(1, keepdim=True).tanh() ** 2
    slope = 0.5 * (inner * weight + 2 * flat)
    exact = gradient_penalty(logits, x, "exact", x)
    torch.testing.assert_close(exact, slope.square().sum(1))
    assert torch.autograd.grad(exact.sum(), weight)[0].abs().sum() > 0
    directions = torch.randn(4000, 3, 2, 1, 1, generator=generator, dtype=torch.float64)
    found = torch.stack([gradient_penalty(logits, x, "finite", n) for n in directions]).mean(0)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.0)


def test_the_bands_add_up_to_the_map_and_part_slow_waves_from_fast_ones() -> None:
    place = torch.arange(8.0)
    slow = torch.cos(2 * math.pi * place / 8).expand(8, 8)[None, None]
    fast = torch.cos(math.pi * place).expand(8, 8)[None, None]
    low, high = frequency_bands(slow + fast)
    torch.testing.assert_close(low, slow, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(high, fast, atol=1e-5, rtol=0.0)
    odd = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(sum(frequency_bands(odd)), odd)
    torch.testing.assert_close(normalised(1000 * odd).square().mean(1), torch.ones(2, 5, 7))


@pytest.mark.parametrize("kind", HEADS)
def test_heads_take_maps_of_any_size_and_heed_every_map_and_the_condition(kind: str) -> None:
    torch.manual_seed(0)
    heads = Discriminator((8, 5), kind, width=16, condition_width=4)
    maps, condition = [torch.randn(3, 8, 4, 6), torch.randn(3, 5, 1, 1)], torch.randn(3, 4)
    logits = heads(maps, condition)
    assert logits.shape[0] == 3 and logits.dtype == torch.float32
    for number in range(2):
        other = [m.clone() for m in maps]
        other[number][1] = torch.randn_like(other[number][1])
        changed = (heads(other, condition) != logits).any(1)
        assert changed.tolist() == [False, True, False]
    assert not torch.equal(heads(maps, condition + 1), logits)
    logits.sum().backward()
    # one position has no high frequencies, and one key no softmax
    silent = ("heads.1.high.inside.weight", "heads.1.high.middle.weight", "heads.1.queries")
    dead = [n for n, p in heads.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in dead if not n.startswith(silent)] == []


def test_a_caption_s_mean_counts_its_real_tokens() -> None:
    tokens = torch.randn(1, 3, 4)
    short = Condition(tokens[:, :2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(pooled(short.pad(3)), pooled(short))
    assert pooled(short).square().mean() == pytest.approx(1.0, abs=1e-4)


# every pair of method and teacher, of method and head, of teacher and head
PAIRWISE = [
    (name, kind, HEADS[(a + b) % len(HEADS)]) for a, name in enumerate(ADVERSARIAL) for b, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("name", "teacher", "head"), PAIRWISE, indirect=["teacher"])
def test_a_turn_s_loss_reaches_all_of_what_it_trains_and_nothing_else(teacher: Teacher, name: str, head: str) -> None:
    one_step = {"num_steps": 1} if name == "dmd2" else {}  # else there is an embedder that begins with zeros
    trainer = make_trainer(teacher, method_spec(name).config(heads=head, r1_weight=1.0, **one_step), method=name)
    # attention over keys is blind to one constant added to all of them, hinge at the start to one on all logits, and
    # behind a zero layer nothing moves yet
    silent = ("to_k.bias", "last.bias", "guidance_embedder.hidden.weight", "guidance_embedder.hidden.bias")
    assert_gradients_reach_their_networks(trainer, *silent)


@pytest.mark.parametrize("pairs", [False, True])
def test_ladd_by_hand(teacher: Teacher, pairs: bool) -> None:
    more = {"regression_weight": 3.0, "misaligned": True} if pairs else {}
    method = make_method("ladd", teacher, num_steps=2, noise_share=0.5, head_condition=False, **more)
    assert (method.reads_pairs, method.reads_neighbours) == (pairs, pairs)
    student, heads = (method.build(spec) for spec in method.networks())
    networks = {STUDENT: student, DISCRIMINATOR: heads}
    view, batch = FlowView(teacher), make_batch(teacher)
    random, shape, x0 = batch.random, batch.x0.shape[1:], batch.x0
    step, whole = (random.uniform() * 2).long(), random.uniform() < 0.5
    step = torch.where(whole, 0, step)
    stored = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3)) if pairs else None
    noise = random.normal(*shape) if stored is None else stored
    times = view.times(2)
    starts = [view.start(noise, times[0]), (1 - float(times[1])) * x0 + float(times[1]) * noise]
    x_s = torch.stack([starts[k][row] for row, k in enumerate(step.tolist())])
    s = times[step]
    x = x_s - s.float()[:, None, None, None] * view.velocity(student, x_s, s, batch.condition)
    u = random.uniform().clamp(1e-9, 1 - 1e-9)
    t = torch.sigmoid(1.0 + torch.special.ndtri(u)).clamp(view.t_min, view.t_max)
    t4 = t.float()[:, None, None, None]

    def judged(latents: Tensor) -> Tensor:
        noisy = (1 - t4) * latents + t4 * random.normal(*shape)
        logits: Tensor = heads(view.features(teacher.network(), noisy, t, batch.condition))
        return logits

    real, fake = judged(x0), judged(x)
    of_d = (torch.relu(1 - real) + torch.relu(1 + fake)).mean(1)
    if pairs:
        random.normal(*shape)  # the direction of the penalty
        assert batch.neighbour is not None
        of_d = 0.5 * (of_d + (torch.relu(1 - real) + torch.relu(1 + judged(batch.neighbour))).mean(1))
    for name, wanted in ((STUDENT, -fake.mean(1)), (DISCRIMINATOR, of_d)):
        given = dataclasses.replace(make_batch(teacher), noise=stored)
        found = method.losses(Turn(trains=(name,)), given, networks)
        torch.testing.assert_close(found.by_network[name], wanted, rtol=1e-3, atol=1e-4)
        away = (x - x0).abs()
        distance = torch.where(away < 1.0, 0.5 * away**2, away - 0.5).flatten(1).mean(1)
        assert (STUDENT in found.secondary) is (pairs and name == STUDENT)
        if found.secondary:
            torch.testing.assert_close(found.secondary[STUDENT], 3.0 * distance, rtol=1e-3, atol=1e-4)


def test_dmd2_s_adversarial_loss_is_on_the_fake_score_s_features(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    losses, gradients = {}, {}
    for weight in (0.0, 1e-2, 1.0):
        trainer = make_trainer(teacher, method_spec("dmd2").config(num_steps=1, fake_gan_weight=weight), method="dmd2")
        trainer._accumulate(trainer.method.turns(0)[0], [make_batch(teacher)])
        gradients[weight] = torch.cat([p.grad.flatten() for p in trainer.trained[FAKE].parameters])
        losses[weight] = torch.cat([p.grad.flatten() for p in trainer.trained[DISCRIMINATOR].parameters])
    torch.testing.assert_close(losses[0.0], losses[1.0], rtol=1e-3, atol=1e-6)
    whole = gradients[1.0] - gradients[0.0]
    assert whole.norm() > 0
    assert (gradients[1e-2] - gradients[0.0] - 1e-2 * whole).norm() < 0.05 * 1e-2 * whole.norm()
    method, networks = make_method("dmd2", teacher, num_steps=1, gan_weight=0.3), {}
    for spec in method.networks():
        torch.manual_seed(0)
        networks[spec.name] = method.build(spec)
    found = method.losses(Turn(trains=(STUDENT,)), make_batch(teacher), networks).secondary[STUDENT]
    batch = make_batch(teacher)
    guidance = method.draw_guidance(batch)
    made = method.generate(networks[STUDENT], batch, guidance)
    method.look(made.x, batch, networks[FAKE], guidance)
    t = method.times_at(batch.random.uniform())
    method.draw_noise(batch)
    fake_t = method.noisy(made.x, method.draw_noise(batch), t)
    features = method.view.features(networks[FAKE], fake_t, t, batch.condition)
    logits = networks[DISCRIMINATOR](features)  # of the features alone
    torch.testing.assert_close(found, 0.3 * nn.functional.softplus(-logits).mean(1))


def test_sana_sprint_is_scm_with_a_second_loss_and_wrong_captions_for_fakes(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    method = make_method("sana-sprint", teacher, noise_share=1.0)
    networks = {}
    for spec in method.networks():
        torch.manual_seed(0)
        networks[spec.name] = method.build(spec)
    judge, student = method.turns(0)
    assert judge.trains == (DISCRIMINATOR,) and DISCRIMINATOR not in student.trains
    found = method.losses(student, make_batch(teacher), networks)
    batch = make_batch(teacher)
    plain = SCM.losses(method, student, batch, networks)
    assert torch.equal(found.by_network[STUDENT], plain.by_network[STUDENT])
    guidance = method.draw_guidance(batch)
    z = method.draw_noise(batch)
    batch.random.uniform(), batch.random.uniform()
    x = method.predict_x0(networks[STUDENT], z, torch.ones(4).double(), batch.condition, guidance)
    u = batch.random.uniform()
    s = torch.sigmoid(-0.6 + math.log(2) + torch.special.ndtri(u))
    s4 = s.float()[:, None, None, None]
    real = (1 - s4) * batch.x0 + s4 * method.draw_noise(batch)
    fake = (1 - s4) * x + s4 * method.draw_noise(batch)

    def logits(latents: Tensor) -> Tensor:
        return method.discriminator.judge.logits(
            networks[DISCRIMINATOR], teacher.network(), latents, s, batch.condition
        )

    torch.testing.assert_close(found.secondary[STUDENT], -0.5 * logits(fake).mean(1), rtol=1e-4, atol=1e-5)
    arguments = (networks[DISCRIMINATOR], teacher.network(), real, fake.detach(), s, batch.condition, z)
    judged = make_batch(teacher)
    wrong = method.misaligned(judged, s)
    random = make_batch(teacher).random
    assert wrong is not None
    torch.testing.assert_close(wrong, (1 - s4) * batch.x0[[3, 0, 1, 2]] + s4 * random.normal(*batch.x0.shape[1:]))
    loss = method.discriminator.judge.discriminator_loss(*arguments, misaligned=wrong).loss
    by_hand = torch.relu(1 - logits(real)) + 0.5 * (torch.relu(1 + logits(fake)) + torch.relu(1 + logits(wrong)))
    torch.testing.assert_close(loss, by_hand.mean(1))


def test_the_penalty_joins_the_discriminator_s_loss_at_the_noised_real_input() -> None:
    teacher = MixtureTeacher(circle()).freeze_fitted()
    classes = torch.ones(4).long()
    condition, t = teacher.condition(classes), torch.full((4,), 0.5).double()
    real, fake, direction = (torch.randn(4, 2, 1, 1) for _ in range(3))
    plain, exact = (make_method("ladd", teacher, r1_weight=w, r1_form="exact") for w in (0.0, 3.0))
    heads = plain.judge.build()
    arguments = (heads, teacher.network(), real, fake, t, condition, direction)
    added = exact.judge.discriminator_loss(*arguments).loss - plain.judge.discriminator_loss(*arguments).loss
    x = real.clone().requires_grad_()
    logits = exact.judge.logits(heads, teacher.network(), x, t, condition).mean(1)
    slope = torch.autograd.grad(logits.sum(), x)[0].flatten(1)
    torch.testing.assert_close(added, 1.5 * slope.square().sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("ladd", {"guidance_min": 1.0, "guidance_max": 4.0}, "guidance_min"),
        ("ladd", {"num_steps": 0}, "num_steps"),
        ("ladd", {"noise_share": 1.5}, "noise_share"),
        ("ladd", {"r1_weight": -1.0}, "r1_weight"),
        ("ladd", {"head_width": 0}, "head_width"),
        ("sana-sprint", {"gan_weight": -1.0}, "gan_weight"),
        ("sana-sprint", {"discriminator_rate": 0.0}, "discriminator_rate"),
        ("sana-sprint", {"judge_time_std": 0.0}, "judge_time_std"),
        ("dmd2", {"fake_gan_weight": -1.0}, "fake_gan_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        method_spec(name).config(**settings)
    assert error.value.hint
