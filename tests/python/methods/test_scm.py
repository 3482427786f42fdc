from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.scm import SCM, WEIGHT, LogWeight, SCMConfig, trig_prediction
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from distilling import make_batch, make_teacher
from method_runs import make_method

torch.set_num_threads(1)
FIXED = {"guidance_min": 3.0, "guidance_max": 3.0}


def build(method: SCM) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    networks = {spec.name: method.build(spec) for spec in method.networks()}
    with torch.no_grad():  # a student that is not its teacher, a weight that is not 1
        for p in networks[STUDENT].parameters():
            p.mul_(1.05)
        if WEIGHT in networks:
            for p in networks[WEIGHT].parameters():
                p.add_(0.1 * torch.randn(p.shape))
    return networks


def mixture_batch(teacher: MixtureTeacher, rows: int = 6) -> Batch:
    """A batch in float64, so that derivatives can be told from rounding."""
    x0 = torch.randn(rows, 2, 1, 1, generator=torch.Generator().manual_seed(5)).double()
    classes = torch.arange(rows) % (teacher.mixture.num_classes + 1)
    condition, null = teacher.condition(classes), teacher.null_condition()
    return Batch(x0=x0, condition=condition, null=null, random=RandomNumbers(0, 0, range(rows)), progress=0.05)


class ByHand:
    """Lu & Song 2024, algorithm 1, in TrigFlow's own terms: its states, its times, derivatives by differences."""

    def __init__(self, teacher: MixtureTeacher, config: SCMConfig, batch: Batch) -> None:
        self.teacher, self.s_d = teacher, config.sigma_data
        again = RandomNumbers(0, 0, range(len(batch)))
        u, _, z = again.uniform(), again.uniform(), again.normal(2, 1, 1).double()
        normal = torch.special.ndtri(u)
        # log tan(t) has the mean and the deviation that the settings say
        tau = torch.sigmoid(config.time_mean + config.time_std * normal)
        self.t = torch.atan2(tau, 1 - tau)[:, None, None, None]
        self.condition, self.null = batch.condition, batch.null
        self.x0, self.z = self.s_d * batch.x0, self.s_d * z
        self.x = self.t.cos() * self.x0 + self.t.sin() * self.z

    def output(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """F at (x / s_d, t): cos(t) z - sin(t) x0 of what a flow network says, found by undoing its path."""
        tau = t.sin() / (t.sin() + t.cos())
        state = x / self.s_d / (t.sin() + t.cos())
        v = self.teacher.predict(network, state, tau.flatten(), condition)
        clean, noise = state - tau * v, state + (1 - tau) * v
        return t.cos() * noise - t.sin() * clean

    def slope(self, source: str, guidance: float) -> Tensor:
        rows = len(self.x)
        network, null = self.teacher.network(), self.null.expand(rows)
        cond, uncond = (self.output(network, self.x, self.t, c) for c in (self.condition, null))
        if source == "teacher":
            return self.s_d * (uncond + guidance * (cond - uncond))
        return self.t.cos() * self.z - self.t.sin() * self.x0 + (guidance - 1) * self.s_d * (cond - uncond)

    def tangent(self, student: nn.Module, dx: Tensor, warmup: float) -> Tensor:
        cos, sin, h = self.t.cos(), self.t.sin(), 1e-5
        ends = [
            self.output(student, self.x + move * cos * sin * dx, self.t + move * cos * sin, self.condition)
            for move in (h, -h)
        ]
        jvp = (ends[0] - ends[1]) / (2 * h)
        here = self.output(student, self.x, self.t, self.condition)
        return -(cos**2) * (self.s_d * here - dx) - warmup * (cos * sin * self.x + self.s_d * jvp)


@pytest.mark.parametrize("tangent_norm", ["l2", "rms"])
@pytest.mark.parametrize("source", ["teacher", "data"])
def test_loss_and_gradient_equal_the_formula_in_float64(source: str, tangent_norm: str) -> None:
    teacher = MixtureTeacher(circle(num_classes=2), "flow")
    config = SCMConfig(velocity_from=source, tangent_norm=tangent_norm, time_std=1.0, **FIXED)
    method = SCM(config, teacher)
    networks = {name: network.double() for name, network in build(method).items()}
    batch = mixture_batch(teacher)
    found = method.losses(method.turns(0)[0], batch, networks)

    hand = ByHand(teacher, config, batch)
    with torch.no_grad():
        h = hand.tangent(networks[STUDENT], hand.slope(source, 3.0), warmup=0.5)
        norm = h.flatten(1).norm(dim=1) if tangent_norm == "l2" else h.flatten(1).square().mean(1).sqrt()
        h = h / (norm[:, None, None, None] + 0.1)
    tau = (hand.t.sin() / (hand.t.sin() + hand.t.cos())).flatten()
    u = networks[WEIGHT](tau).double()
    prior = 1 / (0.5 * hand.t.tan().flatten())
    output = hand.output(networks[STUDENT], hand.x, hand.t, batch.condition)
    error = (output - output.detach() - h).square().flatten(1).mean(1)
    expected = torch.exp(-u) * prior * error + u
    torch.testing.assert_close(found.by_network[STUDENT], expected, rtol=1e-6, atol=1e-7)

    for name in (STUDENT, WEIGHT):
        parameters = list(networks[name].parameters())
        ours = torch.autograd.grad(found.by_network[name].sum(), parameters, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(expected.sum(), parameters, retain_graph=True, allow_unused=True)
        for mine, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_exact_derivative_is_that_of_differences_in_float64(process: str) -> None:
    teacher = MixtureTeacher(circle(), process)
    batch = mixture_batch(teacher)
    along = torch.randn(6, 2, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    tau = torch.linspace(0.2, 0.85, 6, dtype=torch.float64)
    # waves of x, and none of the network's corners between the ends; the clock of a table has corners of its own
    student = teacher.new_student_network(torch.float64)
    exact, finite = (
        SCM(SCMConfig(jvp=kind, jvp_step=1e-5), teacher).output_tangent(student, batch.x0, along, tau, batch, 1.0)
        for kind in ("dual", "finite")
    )
    torch.testing.assert_close(exact, finite, rtol=1e-6, atol=1e-7)


def test_a_flow_network_is_exact_inside_trigflow() -> None:
    generator = torch.Generator().manual_seed(2)
    x0, z = (torch.randn(5, 3, 2, 2, generator=generator).double() for _ in range(2))
    angle = torch.tensor([0.05, 0.5, 0.8, 1.2, 1.55]).double()
    cos, sin = (value[:, None, None, None] for value in (angle.cos(), angle.sin()))
    tau = angle.sin() / (angle.sin() + angle.cos())
    state = (cos * x0 + sin * z) / (cos + sin)
    output = trig_prediction(z - x0, state, tau)
    torch.testing.assert_close(output, cos * z - sin * x0)
    v = torch.randn(x0.shape, generator=generator).double()  # whatever the network says, both see one clean picture
    shown = 0.5 * (cos * (cos + sin) * state - sin * trig_prediction(v, state, tau))
    torch.testing.assert_close(shown, 0.5 * (state - tau[:, None, None, None] * v))


def test_the_loss_reaches_all_of_the_student_and_of_the_weight_and_nothing_else(teacher: Teacher) -> None:
    method = SCM(SCMConfig(guidance_min=2.0, guidance_max=4.0), teacher)
    networks = build(method)
    losses = method.losses(method.turns(0)[0], make_batch(teacher), networks)
    losses.by_network[WEIGHT].sum().backward()
    assert all(p.grad is None for p in networks[STUDENT].parameters())
    assert all(p.grad is not None and p.grad.any() for p in networks[WEIGHT].parameters())
    kept = [p.grad.clone() for p in networks[WEIGHT].parameters() if p.grad is not None]
    losses.by_network[STUDENT].sum().backward()
    assert all(torch.equal(p.grad, k) for p, k in zip(networks[WEIGHT].parameters(), kept, strict=True))  # type: ignore[arg-type]
    silent = {"guidance_embedder.hidden.weight", "guidance_embedder.hidden.bias"}
    student = networks[STUDENT].named_parameters()
    missing = [n for n, p in student if p.grad is None or (n not in silent and not p.grad.any())]
    if teacher.prediction == "flow":  # attention over keys is blind to one constant added to all of them
        missing = [name for name in missing if not name.endswith("to_k.bias")]
    assert missing == []
    assert all(p.grad is None for p in teacher.network().parameters())


def test_differences_are_near_the_exact_derivative_on_a_real_network(teacher: Teacher) -> None:
    batch = make_batch(teacher)
    along, tau = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1)), torch.rand(4).double()
    tau = 0.3 + 0.4 * tau
    exact, finite = (
        SCM(SCMConfig(jvp=kind, **FIXED), teacher).output_tangent(teacher.network(), batch.x0, along, tau, batch, 3.0)
        for kind in ("dual", "finite")
    )
    assert (exact - finite).norm() < 0.02 * exact.norm()


def test_the_output_changes_with_guidance_when_a_range_is_trained(teacher: Teacher) -> None:
    method = SCM(SCMConfig(guidance_min=2.0, guidance_max=6.0), teacher)
    networks = build(method)
    embedder = networks[STUDENT].get_submodule("guidance_embedder.last")
    method.losses(method.turns(0)[0], make_batch(teacher), networks).by_network[STUDENT].sum().backward()
    with torch.no_grad():
        for p in embedder.parameters():
            assert p.grad is not None
            p.sub_(p.grad / p.grad.norm())
    batch, t = make_batch(teacher), torch.full((4,), 0.5).double()
    low, high = (method.velocity(networks[STUDENT], batch.x0, t, batch.condition, s) for s in (2.0, 6.0))
    assert (low - high).norm() > 1e-4 * low.norm()


def test_the_weight_is_not_in_the_exported_network(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "pipeline")
    method = SCM(SCMConfig(guidance_min=2.0, guidance_max=4.0), teacher)
    plain = method.plain_network(build(method)[STUDENT])
    assert type(plain) is type(teacher.network())
    assert plain.state_dict().keys() == teacher.network().state_dict().keys()


def test_the_weight_learns_the_logarithm_of_the_error() -> None:
    """The minimum of exp(-u) e + u is u = log e, at every time."""
    torch.manual_seed(0)
    weight, tau = LogWeight(), torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    error = 0.1 + tau.float() ** 2
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.03)
    for _ in range(500):
        u = weight(tau)
        optimizer.zero_grad()
        (torch.exp(-u) * error + u).mean().backward()
        optimizer.step()
    assert (weight(tau) - error.log()).abs().max() < 0.1


def test_the_tangent_warms_up_over_its_share_of_the_run() -> None:
    teacher = MixtureTeacher(circle())
    method = SCM(SCMConfig(tangent_warmup=0.2), teacher)
    assert [method.warmup(p, 7) for p in (0.0, 0.1, 0.2, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert SCM(SCMConfig(tangent_warmup=0.0), teacher).warmup(0.0, 0) == 1.0
    assert SCM(SCMConfig(tangent_warmup=4.0), teacher).warmup(0.9, 1) == 0.5


def test_sana_sprint_counts_the_updates_of_both_networks_and_draws_guidance_from_a_set(tmp_path: Path) -> None:
    teacher = make_teacher("flow", tmp_path / "teacher")
    method = make_method("sana-sprint", teacher, tangent_warmup=8.0)
    assert [method.warmup(0.0, step) for step in (0, 1, 4)] == [1 / 8, 3 / 8, 1.0]  # as train_scm_ladd.py counts
    assert method.stretched(0.0) == ()
    drawn = torch.cat([method.draw_guidance(make_batch(teacher, step)) for step in range(16)])
    assert {*drawn.tolist()} == {4.0, 4.5, 5.0} and (method.guidance_min, method.guidance_max) == (4.0, 5.0)
    ranged = make_method("sana-sprint", teacher, guidance_min=4.0, guidance_max=5.0)
    assert len({*ranged.draw_guidance(make_batch(teacher)).tolist()}) == 4
    assert make_method("sana-sprint", teacher, guidance_set=None).usual_guidance() == (4.0, 5.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tangent_c": 0.0}, "tangent_c"),
        ({"sigma_data": -1.0}, "sigma_data"),
        ({"tangent_warmup": 1.5}, "tangent_warmup"),
        ({"jvp_step": 0.0}, "jvp_step"),
        ({"weight_learning_rate_scale": 0.0}, "weight_learning_rate_scale"),
        ({"guidance_min": 5.0, "guidance_max": 4.0}, "guidance_min"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        SCMConfig(**settings)  # type: ignore[arg-type]
    assert error.value.hint
