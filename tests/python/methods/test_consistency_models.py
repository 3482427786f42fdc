"""Consistency models on pairs of times: cd, ct, ict, ect, tcm."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, TARGET, Batch, Turn
from ddx.methods.ct import ct_intervals
from ddx.methods.ect import earlier_level
from ddx.methods.parts.consistency import ConsistencyMethod, karras_grid, level, same_dropout
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.registry import METHODS
from ddx.methods.tcm import FIRST, TCMConfig
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.training.optimizer import warmup_constant
from distilling import in_turns, make_batch, make_teacher, make_trainer

torch.set_num_threads(1)
TURN = Turn(trains=(STUDENT,))
NAMES = ("cd", "ct", "ict", "ect", "tcm")
FIXED = {"guidance_min": 3.0, "guidance_max": 3.0}
SECOND_STAGE = 70  # of 100 steps


def make_method(name: str, teacher: Teacher, **settings: Any) -> ConsistencyMethod:
    method = METHODS[name].method(METHODS[name].config(**settings), teacher)
    assert isinstance(method, ConsistencyMethod)
    method.train_steps = 100
    return method


def build(method: ConsistencyMethod) -> dict[str, nn.Module]:
    """All networks, each of them different."""
    networks = {spec.name: method.build(spec) for spec in method.networks()}
    for number, network in enumerate(networks.values()):
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(1.05 + 0.05 * number)
    return networks


class ByHand:
    """The papers' algorithms, in noise levels and one row at a time."""

    def __init__(self, teacher: MixtureTeacher) -> None:
        self.teacher, self.process = teacher, teacher.process
        ends = [
            float(teacher.process.flow_time(torch.tensor(t).double())) for t in (self.process.t_min, self.process.t_max)
        ]
        self.low, self.high = ends

    def velocity(self, network: nn.Module, x: Tensor, t: float, condition: Condition) -> Tensor:
        time = self.process.time_at(torch.atan2(torch.tensor([t]).double(), torch.tensor([1 - t]).double()))
        alpha, sigma = float(self.process.alpha(time)), float(self.process.sigma(time))
        state = (alpha + sigma) * x
        p = self.teacher.predict(network, state, time, condition)
        match self.teacher.prediction:
            case "flow":
                return p
            case "eps":
                clean = (state - sigma * p) / alpha
                return p - clean
        return (alpha * p + sigma * state) - (alpha * state - sigma * p)

    def clean(self, network: nn.Module, x: Tensor, t: float, condition: Condition) -> Tensor:
        return x - t * self.velocity(network, x, t, condition)

    def guided(self, x: Tensor, t: float, condition: Condition, null: Condition) -> tuple[Tensor, Tensor]:
        network = self.teacher.network()
        uncond, cond = (self.velocity(network, x, t, c) for c in (null, condition))
        return uncond + 3.0 * (cond - uncond), 2.0 * (cond - uncond)

    def grid(self, number: int) -> list[float]:
        """Karras et al. 2022, equation 5, with rho = 7, for twice its standard deviation of data."""
        low = max(self.low / (1 - self.low), 0.004)
        high = 160.0 if self.high > 160 / 161 else self.high / (1 - self.high)
        roots = [low ** (1 / 7) + n / number * (high ** (1 / 7) - low ** (1 / 7)) for n in range(number + 1)]
        return [0.0, *(root**7 / (1 + root**7) for root in roots[1:-1]), self.high]

    def noise_level(self, t: float) -> float:
        return t / max(1 - t, 1 / 161)

    def drawn(self, u: Tensor, mean: float, std: float) -> float:
        t = torch.sigmoid(mean + std * torch.special.ndtri(u))
        return min(max(float(t), self.low), self.high)

    def tuned(self, t: float, stage: int) -> float:
        at = self.noise_level(t)
        earlier = max(0.0, at * (1 - 2.0 ** -(stage + 1) * (1 + 8 / (1 + math.exp(0.5 * at)))))
        r = earlier / (1 + earlier)
        return r if r >= self.low else 0.0


@pytest.mark.parametrize("process", ["flow", "vp-eps", "vp-v"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_equals_the_formula_in_float64(name: str, process: str) -> None:
    teacher = MixtureTeacher(circle(num_classes=2), process)
    method = make_method(name, teacher, **FIXED)
    networks = {key: network.double() for key, network in build(method).items()}
    rows, step = 48, SECOND_STAGE  # enough that one is next to the picture
    x0 = torch.randn(rows, 2, 1, 1, generator=torch.Generator().manual_seed(5)).double()
    condition = teacher.condition(torch.arange(rows) % 3)
    null = teacher.null_condition()
    batch = Batch(
        x0=x0, condition=condition, null=null, random=RandomNumbers(0, 0, range(rows)), step=step, progress=step / 100
    )
    found = method.losses(TURN, batch, networks).by_network[STUDENT]

    hand, again = ByHand(teacher), RandomNumbers(0, 0, range(rows))
    times = again.uniform()
    at_boundary = again.uniform() < 0.25 if name == "tcm" else torch.zeros(rows).bool()
    again.uniform()  # the guidance
    noise = again.normal(2, 1, 1).double()
    assert name != "tcm" or (at_boundary.any() and not at_boundary.all())
    mean, below_first = -1.1 + math.log(2), [False]
    for row in range(rows):
        here, u = condition.index(slice(row, row + 1)), times[row]
        clean, eps = x0[row : row + 1], noise[row : row + 1]
        weight = 1.0
        match name:
            case "cd":
                grid = hand.grid(40)
                n = int(u * 40) + 1
                t, r = grid[n], grid[n - 1]
            case "ct":
                number = math.ceil(math.sqrt(0.7 * (201**2 - 2**2) + 2**2) - 1)
                grid = hand.grid(number)
                n = int(u * number) + 1
                t, r = grid[n], grid[n - 1]
            case "ict":
                grid = hand.grid(320)  # 10, doubled 5 times of 7, with 0.7 of the run done
                drawn = hand.drawn(u, mean, 2.0)
                n = next(n for n in range(1, len(grid)) if grid[n] >= drawn)
                t, r = grid[n], grid[n - 1]
                weight = 1 / (hand.noise_level(t) - hand.noise_level(r))
            case "ect":
                t = hand.drawn(u, mean, 2.0)
                r = hand.tuned(t, 5)
                weight = 1 / (hand.noise_level(t) - hand.noise_level(r))
            case "tcm":
                # log-Student-t, half of it, from t' = 0.5 of noise level 1 to the noisiest
                below, above = stdtr(0.01, 0.0), stdtr(0.01, math.log(hand.noise_level(hand.high)) / 0.2)
                t = 1 / (1 + math.exp(-0.2 * stdtrit(0.01, below + (above - below) * float(u))))
                t = 0.5 if at_boundary[row] else t
                r = hand.tuned(t, 7)
                weight = 1 / (hand.noise_level(t) - hand.noise_level(r))
                weight *= 0.1 / 0.25 if at_boundary[row] else 1 / 0.75
                below_first.append(r < 0.5)
        x_t = (1 - t) * clean + t * eps
        guided, extra = hand.guided(x_t, t, here, null)
        if name == "cd":
            euler = x_t + (r - t) * guided
            second = hand.guided(euler, r, here, null)[0] if r > 0 else guided
            x_r = x_t + (r - t) * 0.5 * (guided + second)
        else:
            x_r = (1 - r) * clean + r * eps + (r - t) * extra
        source = networks.get(TARGET, networks[STUDENT])
        if name == "tcm" and r < 0.5:
            source = networks[FIRST]
        difference = hand.clean(networks[STUDENT], x_t, t, here) - hand.clean(source, x_r, r, here)
        squared = difference.square().mean().item()
        distance = squared if name in ("cd", "ct") else math.sqrt(squared + 0.00054**2) - 0.00054
        assert float(found[row]) == pytest.approx(weight * distance, rel=1e-4, abs=1e-12), (name, row, t, r)
    assert name != "tcm" or sum(below_first) > int(at_boundary.sum())  # of other rows too


@pytest.mark.parametrize(("name", "teacher"), in_turns(NAMES), indirect=["teacher"])
def test_the_loss_reaches_every_parameter_of_the_student_and_nothing_else(teacher: Teacher, name: str) -> None:
    method = make_method(name, teacher, guidance_min=2.0, guidance_max=4.0)
    networks = build(method)
    batch = dataclasses.replace(make_batch(teacher), step=SECOND_STAGE, progress=SECOND_STAGE / 100)
    method.losses(TURN, batch, networks).by_network[STUDENT].sum().backward()
    silent = {"guidance_embedder.hidden.weight", "guidance_embedder.hidden.bias"}
    student = networks.pop(STUDENT).named_parameters()
    missing = [n for n, p in student if p.grad is None or (n not in silent and not p.grad.any())]
    if teacher.prediction == "flow":  # attention over keys is blind to one constant added to all of them
        missing = [name for name in missing if not name.endswith("to_k.bias")]
    assert missing == []
    assert all(p.grad is None for network in (*networks.values(), teacher.network()) for p in network.parameters())


def test_the_output_changes_with_guidance_when_a_range_is_trained(teacher: Teacher) -> None:
    method = make_method("ect", teacher, guidance_min=2.0, guidance_max=6.0)
    networks = build(method)
    method.losses(TURN, make_batch(teacher), networks).by_network[STUDENT].sum().backward()
    with torch.no_grad():
        for p in networks[STUDENT].get_submodule("guidance_embedder.last").parameters():
            assert p.grad is not None
            p.sub_(p.grad / p.grad.norm())
    batch, t = make_batch(teacher), torch.full((4,), 0.5).double()
    low, high = (method.velocity(networks[STUDENT], batch.x0, t, batch.condition, s) for s in (2.0, 6.0))
    assert (low - high).norm() > 1e-4 * low.norm()


@pytest.mark.parametrize("process", ["flow", "vp-v", "edm"])
def test_training_from_data_without_guidance_keeps_picture_and_noise(process: str) -> None:
    teacher = MixtureTeacher(circle(), process)
    method = make_method("ct", teacher)
    x0, noise = torch.randn(4, 2, 1, 1), torch.randn(4, 2, 1, 1)
    condition, null = teacher.null_condition().expand(4), teacher.null_condition()
    batch = Batch(x0=x0, condition=condition, null=null, random=RandomNumbers(0, 0, range(4)))
    t, r = torch.tensor([0.9, 0.5, 0.3, 0.1]).double(), torch.tensor([0.7, 0.4, 0.1, 0.0]).double()
    x_r = method.earlier(method.noisy(x0, noise, t), t, r, noise, batch, 1.0)
    torch.testing.assert_close(x_r, method.noisy(x0, noise, r), rtol=1e-5, atol=1e-6)


def test_what_drops_out_at_one_time_drops_out_at_the_other() -> None:
    dropout = nn.Dropout(0.5)
    ones = torch.ones(256)
    with same_dropout(ones.device):
        first = dropout(ones)
    second, third = dropout(ones), dropout(ones)
    assert torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("name", ["ect", "ct"])
def test_a_student_with_dropout_has_no_loss_where_both_times_are_one(name: str) -> None:
    teacher = MixtureTeacher(circle())
    method = make_method(name, teacher, **({"target_decay": 0.0} if name == "ct" else {}))
    student = teacher.new_student_network()
    student.get_submodule("blocks.0").add_module("drop", nn.Dropout(0.5))
    student.train()
    batch = Batch(
        x0=torch.randn(8, 2, 1, 1),
        condition=teacher.null_condition().expand(8),
        null=teacher.null_condition(),
        random=RandomNumbers(0, 0, range(8)),
    )
    draw = method.draw_pair
    method.draw_pair = lambda given: (lambda times, t, r: (times, t, t))(*draw(given))  # type: ignore[method-assign]
    method.weight = lambda t, r, batch: torch.ones_like(t)  # type: ignore[method-assign]
    assert method.losses(TURN, batch, {STUDENT: student}).by_network[STUDENT].abs().max() < 1e-6


def test_the_grid_is_that_of_karras_and_reaches_both_ends() -> None:
    grid = karras_grid(18, 7.0, t_min=0.0, t_max=1.0)
    assert grid[0] == 0.0 and grid[-1] == 1.0 and bool((grid.diff() > 0).all())
    roots = level(grid[1:-1]) ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(16))
    assert roots[0] - (roots[1] - roots[0]) == pytest.approx(0.004 ** (1 / 7))


def test_the_curriculum_of_consistency_training_is_the_paper_s() -> None:
    assert [ct_intervals(p, 2, 200) for p in (0.0, 0.25, 0.9999)] == [1, 100, 200]


def test_the_target_of_consistency_training_slows_down_as_the_grid_grows(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    trainer = make_trainer(teacher, METHODS["ct"].config(), method="ct", train_steps=4)
    decays = []
    for step in range(3):
        trainer.step(step, [make_batch(teacher, step)])
        decays.append(trainer.averages[TARGET][1].decay)
    assert decays == pytest.approx([0.95 ** (2 / points) for points in (2, 101, 143)])
    still = trainer.method.decay_at(trainer.specs[TARGET], 3)
    assert still < 1.0 and decays == sorted(decays)


def test_the_pairs_of_tuning_close_in_and_start_at_the_picture() -> None:
    t = torch.tensor([0.01, 0.5, 3.0, 60.0]).double()
    gaps = torch.stack([t - earlier_level(t, stage, 2.0) for stage in range(8)])
    assert bool((gaps[0, :2] == t[:2]).all())  # diffusion training: the target is the picture itself
    assert bool((gaps.diff(dim=0) <= 0).all()) and bool((gaps[-1] < 0.04 * t).all())


def test_the_second_stage_of_tcm_begins_with_a_snapshot_that_stays(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    trainer = make_trainer(teacher, TCMConfig(first_share=0.5), method="tcm", train_steps=4)
    method, kept = trainer.method, trainer.averages[FIRST][0]

    def gap() -> float:
        pairs = zip(kept.parameters(), trainer.student.parameters(), strict=True)
        return float(sum((a - b).norm() for a, b in pairs))

    assert [method.renewed(step) for step in range(4)] == [(), (), (FIRST,), ()]
    for step in range(2):
        trainer.step(step, [make_batch(teacher, step)])
    assert gap() > 0
    before = [p.clone() for p in trainer.student.parameters()]
    for step in range(2, 4):
        trainer.step(step, [make_batch(teacher, step)])
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), before, strict=True))
    assert gap() > 0


@pytest.mark.parametrize("times", ["student-t", "first"])
def test_the_second_stage_of_tcm_draws_no_time_below_its_boundary(times: str) -> None:
    teacher = MixtureTeacher(circle())
    method = make_method("tcm", teacher, truncation_time=0.4, second_times=times)
    batch = Batch(
        x0=torch.zeros(512, 2, 1, 1),
        condition=teacher.null_condition().expand(512),
        null=teacher.null_condition(),
        random=RandomNumbers(0, 0, range(512)),
        step=SECOND_STAGE,
    )
    _, t, r = method.draw_pair(batch)
    assert t.min() == 0.4 and r.min() < 0.4 and bool((t > r).all())  # the pairs' earlier times may lie below
    assert 0.15 < float((t == 0.4).double().mean()) < 0.35
    assert t.max() > 0.95
    _, t, _ = method.draw_pair(dataclasses.replace(batch, step=0, random=RandomNumbers(0, 0, range(512))))
    assert t.min() < 0.1


def test_the_second_stage_of_tcm_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    trainer = make_trainer(teacher, TCMConfig(first_share=0.5), method="tcm", train_steps=4)
    factors = [trainer.learning_rate_factor(step) for step in range(4)]
    schedule = [factor / own for factor, own in zip(factors, (1.0, 1.0, 0.5, 0.5), strict=True)]
    assert schedule == [warmup_constant(step, warmup_steps=trainer.config.warmup_steps) for step in range(4)]


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("cd", {"grid_steps": 0}, "grid_steps"),
        ("cd", {"target_decay": 1.0}, "target_decay"),
        ("ct", {"grid_steps": 8, "grid_steps_start": 16}, "grid_steps_start"),
        ("ict", {"huber_c": 0.0}, "huber_c"),
        ("ict", {"grid_rho": -1.0}, "grid_rho"),
        ("ect", {"stage_ratio": 1.0}, "stage_ratio"),
        ("ect", {"num_stages": 0}, "num_stages"),
        ("tcm", {"first_share": 1.5}, "first_share"),
        ("tcm", {"truncation_time": 1.0}, "truncation_time"),
        ("tcm", {"truncation_time": 0.0}, "truncation_time"),
        ("tcm", {"boundary_loss_weight": 0.0}, "boundary_loss_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        METHODS[name].config(**settings)
    assert error.value.hint
