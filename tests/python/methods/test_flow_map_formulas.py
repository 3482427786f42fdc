"""The losses of the methods whose student is a flow map, or learns the end of an ODE, against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from by_hand import ByHand
from ddx.methods.base import FAKE, STUDENT, Batch
from ddx.teachers.base import Teacher
from distilling import make_batch, make_teacher
from method_runs import Run, make_run

torch.set_num_threads(1)
NAMES = ("shortcut", "rcgm", "twinflow", "progressive", "reflow", "imf", "freeflow")
GUIDANCE = 3.0
FIXED = {"guidance_min": GUIDANCE, "guidance_max": GUIDANCE}


def uniforms(batch: Batch, count: int) -> list[list[float]]:
    return [batch.random.uniform().tolist() for _ in range(count)]


def compare(found: Tensor, expected: list[Tensor]) -> None:
    torch.testing.assert_close(found.detach().double(), torch.stack(expected), rtol=2e-3, atol=1e-6)


def mean(x: Tensor) -> Tensor:
    return x.square().mean()


def rcgm_error(
    hand: ByHand,
    run: Run,
    batch: Batch,
    row: int,
    x: Tensor,
    t: float,
    r: float,
    step: float,
) -> Tensor:
    """e = [(t - r) F - S] / step - v, or F - v for near times."""
    here, student, target = batch.condition.index(row), run.student, run.networks["target"]
    v, f = (
        hand.guided(x, t, here, batch.null, GUIDANCE),
        hand.average(student, x, t, r, here, GUIDANCE),
    )
    if t - r < step:
        return (f - v).clamp(-1, 1)
    at, stop, total = x - step * v, t - step, torch.zeros_like(x)
    half = (stop - r) / 2
    for a, b in ((stop, stop - half), (stop - half, r)):
        jump = (a - b) * hand.average(target, at, a, b, here, GUIDANCE)
        at, total = at - jump, total + jump
    return (((t - r) * f - total) / step - v).clamp(-1, 1)


def test_rcgm_is_its_formula(teacher: Teacher) -> None:
    run, hand = make_run(teacher, "rcgm", same_time_share=0.5, small_step=0.05, **FIXED), ByHand(teacher)
    found = run.losses(make_batch(teacher)).by_network[STUDENT]
    batch = make_batch(teacher)
    _, u, below, same = uniforms(batch, 4)
    noise = batch.random.normal(*batch.x0.shape[1:]).double()
    expected = []
    for row in range(4):
        t = hand.t_min + (hand.t_max - hand.t_min) * u[row]
        r = t if same[row] < 0.5 else below[row] * t
        x = (1 - t) * batch.x0[row : row + 1].double() + t * noise[row : row + 1]
        expected.append(mean(rcgm_error(hand, run, batch, row, x, t, r, 0.05)))
    compare(found, expected)


def test_shortcut_is_its_formula(teacher: Teacher) -> None:
    run, hand = make_run(teacher, "shortcut", bootstrap_share=0.5, **FIXED), ByHand(teacher)
    found = run.losses(make_batch(teacher, 1)).by_network[STUDENT]
    batch = make_batch(teacher, 1)
    _, u, level = uniforms(batch, 3)
    noise = batch.random.normal(*batch.x0.shape[1:]).double()
    (kind,) = uniforms(batch, 1)
    assert 0 < sum(k < 0.5 for k in kind) < 4  # both kinds of rows
    expected = []
    for row in range(4):
        here, student, target = batch.condition.index(row), run.student, run.networks["target"]
        t = hand.t_min + (hand.t_max - hand.t_min) * u[row]
        d = 1 / 128
        if kind[row] < 0.5:
            d = 0.5 ** int(7 * level[row])
            place = -(-hand.position(t) // d) * d
            t = hand.time_of(place)
        x = (1 - t) * batch.x0[row : row + 1].double() + t * noise[row : row + 1]
        f = hand.velocity(student, x, t, here, guidance=GUIDANCE, interval=d)
        if kind[row] >= 0.5:
            wanted = hand.guided(x, t, here, batch.null, GUIDANCE)
        else:
            m, r = hand.time_of(place - d / 2), hand.time_of(place - d)
            first = (t - m) * hand.velocity(target, x, t, here, guidance=GUIDANCE, interval=d / 2)
            second = (m - r) * hand.velocity(target, x - first, m, here, guidance=GUIDANCE, interval=d / 2)
            wanted = (first + second) / (t - r)
        expected.append(mean(f - wanted))
    compare(found, expected)


@pytest.mark.parametrize(
    ("latents_from", "teacher"),
    [("data", "flow"), ("student", "flow"), ("data", "eps"), ("student", "v")],
    indirect=["teacher"],
)
def test_twinflow_is_its_formula(teacher: Teacher, latents_from: str) -> None:
    shares = {"full_share": 0.4, "near_share": 0.1, "fake_share": 0.25}
    form = {"drawing": "path", "loss": "l2", "jump_weight": "none", "near_span": None}
    settings = {**shares, **FIXED, **form, "rectify_weight": 0.75, "small_step": 0.02, "latents_from": latents_from}
    run, hand = make_run(teacher, "twinflow", **settings), ByHand(teacher)
    seen = set()
    for number in (0, 2, 3):
        found = run.losses(make_batch(teacher, number)).by_network[STUDENT]
        batch = make_batch(teacher, number)
        _, u, below, _ = uniforms(batch, 4)
        noise, fresh = (batch.random.normal(*batch.x0.shape[1:]).double() for _ in range(2))
        closer, kind = uniforms(batch, 2)
        expected = []
        for row in range(4):
            here, student, here_noise = batch.condition.index(row), run.student, noise[row : row + 1]
            part = ("full", "near", "fake", "any")[sum(kind[row] >= edge for edge in (0.4, 0.5, 0.75))]
            seen.add(part)
            drawn_t = hand.t_min + (hand.t_max - hand.t_min) * u[row]
            start = hand.start(here_noise)
            own = start - hand.t_max * hand.velocity(student, start, hand.t_max, here, guidance=GUIDANCE, interval=1.0)
            x_fake = (1 - drawn_t) * own + drawn_t * fresh[row : row + 1]
            back = hand.velocity(student, x_fake, -drawn_t, here, guidance=GUIDANCE)
            if part == "fake":
                expected.append(mean(back - (fresh[row : row + 1] - own)))
                continue
            clean = own if latents_from == "student" else batch.x0[row : row + 1].double()
            t, r = drawn_t, below[row] * drawn_t
            if part == "near":
                r = max(t - 0.02 * closer[row], 0.0)
            x = (1 - t) * clean + t * here_noise
            if part == "full":
                t, r, x = hand.t_max, 0.0, start
            loss = mean(rcgm_error(hand, run, batch, row, x, t, r, 0.02))
            if part == "full":
                real = hand.velocity(student, x_fake, drawn_t, here, guidance=GUIDANCE)
                loss = loss + 0.75 / 0.4 * mean((real - back).clamp(-1, 1))
            expected.append(loss)
        compare(found, expected)
    assert seen == {"full", "near", "fake", "any"}


def test_twinflow_s_published_form_weighs_jumps_and_tells_them_their_end(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "teacher")
    shares = {"full_share": 0.25, "near_share": 0.25, "fake_share": 0.25, "rectify_weight": 0.0}
    run = make_run(teacher, "twinflow", **shares, **FIXED)
    plain = make_run(teacher, "twinflow", **shares, **FIXED, loss="l2", jump_weight="none")
    parts, told = set(), ByHand(teacher)
    for number in range(3):
        found, square = (one.losses(make_batch(teacher, number)).by_network[STUDENT] for one in (run, plain))
        batch = make_batch(teacher, number)
        _, u, below, _ = uniforms(batch, 4)
        _ = [batch.random.normal(*batch.x0.shape[1:]) for _ in range(2)]
        closer, kind = uniforms(batch, 2)
        t = [told.t_min + (told.t_max - told.t_min) * share for share in u]
        for row in range(4):
            part = sum(kind[row] >= edge for edge in (0.25, 0.5, 0.75))
            parts.add(part)
            r = (0.0, t[row] * (1 - 0.05 * closer[row]), t[row], below[row] * t[row])[part]
            jump = 1.0 - r if part == 0 else t[row] - r
            weight = 1.0 if part == 2 else math.tan((1 - jump) * math.pi / 2.5) + 1
            m = float(square[row])
            assert float(found[row]) == pytest.approx(weight * m / (1e-3 * (m / 1.01e-6 + 1) ** 0.5), rel=1e-4)
    assert parts == {0, 1, 2, 3}

    method, student, condition = run.method, run.student.eval(), make_batch(teacher).condition
    ends = torch.tensor([0.0, 0.4, -0.4]).double()
    assert method.interval(ends.abs() + 0.1, ends).tolist() == ends.tolist()  # of flow its clock is its time
    z, eps = (torch.randn(4, *teacher.latent_shape(), generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    x = z
    for time in (0.999, 0.7):
        x = 0.3 * x + 0.7 * eps if time == 0.7 else x
        x = x - time * torch.cat(
            [told.velocity(student, x[n : n + 1], time, condition.index(n), guidance=GUIDANCE) for n in range(4)]
        )
    torch.testing.assert_close(method.draw(student, [z, eps], condition).double(), x.double(), rtol=1e-4, atol=1e-4)


def test_progressive_is_its_formula_in_the_first_stage_and_in_a_later_one(teacher: Teacher) -> None:
    settings = {"first_steps": 16, "stage_length": 5, "repeat_share": 0.5, **FIXED}
    run, hand, null = make_run(teacher, "progressive", **settings), ByHand(teacher), teacher.null_condition()
    counts = set()
    for step, own in ((0, 16), (11, 4), (12, 4)):
        found = run.losses(make_batch(teacher, step)).by_network[STUDENT]
        batch = make_batch(teacher, step)
        _, u, back = uniforms(batch, 3)
        noise = batch.random.normal(*batch.x0.shape[1:]).double()
        expected = []
        for row in range(4):
            here = batch.condition.index(row)
            count = 8 if step and back[row] < 0.5 else own
            counts.add(count)
            place = -(-hand.position(hand.t_min + (hand.t_max - hand.t_min) * u[row]) * count // 1) / count
            t, m, r = (hand.time_of(place - part / count) for part in (0.0, 0.5, 1.0))
            x = (1 - t) * batch.x0[row : row + 1].double() + t * noise[row : row + 1]

            def half(x: Tensor, t: float, here: Any = here, count: int = count, step: int = step) -> Tensor:
                if step == 0:
                    return hand.guided(x, t, here, null, GUIDANCE)
                return hand.velocity(run.networks["before"], x, t, here, guidance=GUIDANCE, interval=0.5 / count)

            x_m = x - (t - m) * half(x, t)
            x_r = x_m - (m - r) * half(x_m, m)
            f = hand.velocity(run.student, x, t, here, guidance=GUIDANCE, interval=1 / count)
            expected.append(mean(f - (x - x_r) / (t - r)))
        compare(found, expected)
    assert counts == {16, 4, 8}


def test_reflow_is_its_formula(teacher: Teacher) -> None:
    run, hand = make_run(teacher, "reflow", solver_steps=2, noise_share=0.5, **FIXED), ByHand(teacher)
    found = run.losses(make_batch(teacher)).by_network[STUDENT]
    batch = make_batch(teacher)
    _, u, pure = uniforms(batch, 3)
    noise = batch.random.normal(*batch.x0.shape[1:]).double()
    expected = []
    for row in range(4):
        here, start = batch.condition.index(row), hand.start(noise[row : row + 1])
        x = start
        for a, b in ((hand.t_max, hand.solver_time(0.5)), (hand.solver_time(0.5), 0.0)):
            v = hand.guided(x, a, here, batch.null, GUIDANCE)
            after = hand.guided(x + (b - a) * v, max(b, hand.t_min, 1e-3), here, batch.null, GUIDANCE)
            x = x + (b - a) * 0.5 * (v + after)
        t = hand.t_max if pure[row] < 0.5 else hand.t_min + (hand.t_max - hand.t_min) * u[row]
        line = (start - x) / hand.t_max
        f = hand.velocity(run.student, x + t * line, t, here, guidance=GUIDANCE)
        expected.append(mean(f - line))
    compare(found, expected)


def test_reflow_on_stored_pairs_is_its_formula(teacher: Teacher) -> None:
    run, hand = make_run(teacher, "reflow", pairs="stored", noise_share=0.5, **FIXED), ByHand(teacher)
    assert run.method.reads_pairs and not make_run(teacher, "reflow", **FIXED).method.reads_pairs
    stored = torch.randn(4, *teacher.latent_shape(), generator=torch.Generator().manual_seed(3))
    found = run.losses(replace(make_batch(teacher), noise=stored)).by_network[STUDENT]
    batch = make_batch(teacher)
    _, u, pure = uniforms(batch, 3)
    expected = []
    for row in range(4):
        start, x = hand.start(stored[row : row + 1].double()), batch.x0[row : row + 1].double()
        t = hand.t_max if pure[row] < 0.5 else hand.t_min + (hand.t_max - hand.t_min) * u[row]
        line = (start - x) / hand.t_max
        f = hand.velocity(run.student, x + t * line, t, batch.condition.index(row), guidance=GUIDANCE)
        expected.append(mean(f - line))
    compare(found, expected)


def by_differences(f: Callable[[float], Tensor], h: float) -> Tensor:
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def test_imf_is_its_formula(teacher: Teacher) -> None:
    """With no weight the loss is the squared error; its derivative is taken by finite differences."""
    settings = {"same_time_share": 0.3, "weight_power": 0.0, "time_mean": 0.0, "time_std": 0.5, **FIXED}
    run, hand = make_run(teacher, "imf", **settings), ByHand(teacher)
    found = run.losses(make_batch(teacher)).by_network[STUDENT]
    weighed = make_run(teacher, "imf", **{**settings, "weight_power": 1.0}).losses(make_batch(teacher))
    torch.testing.assert_close(weighed.by_network[STUDENT], found / (found + 1e-3), rtol=1e-3, atol=1e-5)
    batch = make_batch(teacher)
    _, u, v, same = uniforms(batch, 4)
    noise = batch.random.normal(*batch.x0.shape[1:]).double()
    expected = []
    for row in range(4):
        here = batch.condition.index(row)
        first, second = (
            float(torch.sigmoid(0.5 * torch.special.ndtri(torch.tensor(w, dtype=torch.float64))))
            for w in (u[row], v[row])
        )
        t, r = max(first, second), min(first, second)
        r = t if same[row] < 0.3 else r
        x = (1 - t) * batch.x0[row : row + 1].double() + t * noise[row : row + 1]
        along = hand.velocity(run.student, x, t, here, guidance=GUIDANCE)

        def moved(
            h: float, x: Tensor = x, t: float = t, r: float = r, here: Any = here, along: Tensor = along
        ) -> Tensor:
            return hand.average(run.student, x + h * along, t + h, r, here, GUIDANCE)

        whole = moved(0.0) + (t - r) * by_differences(moved, 2e-4)
        expected.append(mean(whole - hand.guided(x, t, here, batch.null, GUIDANCE)))
    torch.testing.assert_close(found.detach().double(), torch.stack(expected), rtol=0.03, atol=1e-4)


def test_freeflow_is_its_formula(teacher: Teacher) -> None:
    settings = {"correction_share": 0.3, "midway_share": 0.5, **FIXED}
    run, hand = make_run(teacher, "freeflow", **settings), ByHand(teacher)
    seen = set()
    for number in (0, 1):
        found = run.losses(make_batch(teacher, number))
        batch = make_batch(teacher, number)
        _, u = uniforms(batch, 2)
        noise, fresh = (batch.random.normal(*batch.x0.shape[1:]).double() for _ in range(2))
        inside, again, kind = uniforms(batch, 3)
        maps, corrections = [], []
        for row in range(4):
            here, student, x = batch.condition.index(row), run.student, hand.start(noise[row : row + 1])
            part = ("corrected", "midway", "start")[sum(kind[row] >= edge for edge in (0.3, 0.3 + 0.7 * 0.5))]
            seen.add(part)
            t, top = hand.t_max, hand.t_max
            if part == "corrected":
                own = x - top * hand.average(student, x, top, 0.0, here, GUIDANCE)
                s = hand.t_min + (top - hand.t_min) * again[row]
                x_s = (1 - s) * own + s * fresh[row : row + 1]
                y_teacher = x_s - s * hand.guided(x_s, s, here, batch.null, GUIDANCE)
                y_fake = x_s - s * hand.velocity(run.networks[FAKE], x_s, s, here, guidance=GUIDANCE)
                gradient = (y_fake - y_teacher) / (own - y_teacher).abs().mean()
                maps.append(torch.zeros((), dtype=torch.float64))
                corrections.append(0.5 * mean(gradient))
                continue
            if part == "midway":
                t = max(inside[row] * top, hand.t_min)
                x = x - (top - t) * hand.average(student, x, top, t, here, GUIDANCE)
            r = (hand.t_min + (top - hand.t_min) * u[row]) * t / top

            def moved(h: float, x: Tensor = x, t: float = t, r: float = r, here: Any = here) -> Tensor:
                return hand.average(run.student, x, t, r + h, here, GUIDANCE)

            f = moved(0.0)
            v = hand.guided(x - (t - r) * f, r, here, batch.null, GUIDANCE)
            maps.append(mean(f - v - (t - r) * by_differences(moved, 2e-4)))
            corrections.append(torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(found.by_network[STUDENT].detach().double(), torch.stack(maps), rtol=0.01, atol=1e-5)
        compare(found.secondary[STUDENT], corrections)
    assert seen == {"corrected", "midway", "start"}


def test_freeflow_s_fake_score_denoises_what_the_student_draws(teacher: Teacher) -> None:
    run, hand = make_run(teacher, "freeflow", **FIXED), ByHand(teacher)
    losses = run.losses(make_batch(teacher), FAKE)
    losses.by_network[FAKE].sum().backward()
    fake = run.networks[FAKE]
    assert all(p.grad is not None for p in fake.parameters()) and all(p.grad is None for p in run.student.parameters())
    batch = make_batch(teacher)
    _, u = uniforms(batch, 2)
    noise, fresh = (batch.random.normal(*batch.x0.shape[1:]).double() for _ in range(2))
    expected = []
    for row in range(4):
        here, x = batch.condition.index(row), hand.start(noise[row : row + 1])
        own = x - hand.t_max * hand.average(run.student, x, hand.t_max, 0.0, here, GUIDANCE)
        t = hand.t_min + (hand.t_max - hand.t_min) * u[row]
        x_t = (1 - t) * own + t * fresh[row : row + 1]
        predicted = hand.velocity(fake, x_t, t, here, guidance=GUIDANCE)
        expected.append(mean(predicted - (fresh[row : row + 1] - own)))
    compare(losses.by_network[FAKE], expected)
