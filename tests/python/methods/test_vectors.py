"""ddx's losses against what public reference implementations gave, number for number.

Each file in ``vectors/`` says which code was run (`source`), on which weights, latents and random numbers, and what it
returned: losses and gradients. Here the method's own `losses` sees the same. Where the two differ by design, by a
factor or a weight, the test states the difference and applies it.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddx.methods.base import FAKE, STUDENT, TARGET, Batch, Method, Turn
from ddx.methods.dmd2 import DMD2, DMD2Config
from ddx.methods.ect import ECT, ECTConfig
from ddx.methods.imf import IMF, IMFConfig
from ddx.methods.ladd import LADD, LADDConfig
from ddx.methods.lcm import LCM, LCMConfig
from ddx.methods.meanflow import MeanFlow, MeanFlowConfig
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.methods.parts.score_distillation import ScoreDistillation, Scores
from ddx.methods.pcm import PCM, PCMConfig
from ddx.methods.rcgm import RCGM, RCGMConfig
from ddx.methods.sana_sprint import SanaSprint, SanaSprintConfig
from ddx.methods.scm import SCM, WEIGHT, SCMConfig
from ddx.methods.shortcut import Shortcut, ShortcutConfig
from ddx.methods.sid import SiD, SiDConfig
from ddx.methods.sid_lsg import SiDLSG, SiDLSGConfig
from ddx.methods.sida import SiDA, SiDAConfig
from ddx.methods.tcm import FIRST, TCM, TCMConfig
from ddx.methods.tdm import TDM, TDMConfig, fake_loss, noised_further
from ddx.methods.twinflow import TwinFlow, TwinFlowConfig
from ddx.process import EDMProcess, FlowProcess, VPProcess
from toys import Heads, Recorded, Toy, ToyTeacher, toy_batch

torch.set_num_threads(1)
VECTORS = Path(__file__).parent / "vectors"
TOLERANCE = 1e-6  # relative; a few of a method's numbers, such as fed guidance, pass through float32


@cache
def read(method: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / f"{method}.json").read_text())["cases"]
    return found


def cases(method: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", sorted(read(method)))


class Case:
    """One case of a file, its numbers as float64 tensors."""

    def __init__(self, method: str, name: str) -> None:
        case = read(method)[name]
        self.settings, self._networks, self._given = case["settings"], case["networks"], case["given"]
        self.inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}

    def toy(self, network: str, **takes: Any) -> Toy:
        return Toy(self._networks[network], **takes)

    def raw(self, network: str) -> Any:
        return self._networks[network]

    def raw_given(self, name: str) -> Any:
        return self._given[name]

    def holds(self, loss: Tensor, network: Toy, *, of: str = "loss", gradient: str = "gradient") -> None:
        """The loss and its gradient by the network's weights are those that were given."""
        given = {"loss": self._given[of], **self._given[gradient]}
        for key, value in {"loss": loss, **network.gradients(loss)}.items():
            agree(value, given[key], key)

    def agrees(self, value: Tensor, given: str) -> None:
        """A single number or gradient is the one that was given."""
        agree(value, self._given[given], given)


def agree(value: Tensor, given: Any, what: str) -> None:
    wanted = torch.tensor(given, dtype=torch.float64)
    assert value.dtype == torch.float64, f"{what} was not computed in float64"
    off, length = float((value.detach() - wanted).norm()), float(wanted.norm())
    assert off <= TOLERANCE * length, f"{what}, {length:.3g} long, is off by {off:.1e}"


def loss_of(name: str, method: Method, batch: Batch, networks: dict[str, Any]) -> Tensor:
    """The rows' losses of the network `name` in a turn of its own."""
    return method.losses(Turn(trains=(name,)), batch, networks).by_network[name]


def quantile(t: Tensor, method: ScoreDistillation) -> Tensor:
    """The uniform number that a method of score distillation makes the flow time t of."""
    config, view = method.config, method.view
    if method.draws_timesteps:
        step = view.process.time_at(torch.atan2(t, 1.0 - t)).round()
        return ((step + 0.5) / (view.process.t_max + 1.0) - config.time_low) / (config.time_high - config.time_low)
    return ((t - view.t_min) / (view.t_max - view.t_min) - config.time_low) / (config.time_high - config.time_low)


def stable_diffusion() -> VPProcess:
    """The table of Stable Diffusion."""
    return VPProcess(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)


@cases("lcm")
def test_lcm(name: str) -> None:
    case = Case("lcm", name)
    data, settings = case.inputs, case.settings
    teacher = ToyTeacher(case.toy("teacher"), stable_diffusion(), settings["prediction"], lambda t: t / 1000.0)
    # the paper's w leaves the conditional prediction as it is at 0, a guidance scale at 1
    low, high = settings["w_min"] + 1.0, settings["w_max"] + 1.0
    method = LCM(LCMConfig(guidance_min=low, guidance_max=high, loss=settings["loss"]), teacher)
    position = (data["index"] + 0.5) / 50
    random = Recorded(uniforms=[position, data["u_guidance"]], normals=[data["noise"]])
    student, target = (case.toy(network, takes=["guidance"]) for network in ("student", "target"))
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    case.holds(loss_of(STUDENT, method, batch, {"student": student, "target": target}).mean(), student)


@cases("pcm")
def test_pcm(name: str) -> None:
    case = Case("pcm", name)
    data, settings = case.inputs, case.settings
    process = stable_diffusion()
    teacher = ToyTeacher(case.toy("teacher"), process, settings["prediction"], lambda t: t / 1000.0)
    edge = torch.tensor([499.0]).double()  # between the two phases: the flow's state is that much shorter there
    length = float(process.alpha(edge) + process.sigma(edge))
    guidance = settings["w"] + 1.0
    config = PCMConfig(
        num_steps=settings["phases"],
        guidance_min=guidance,
        guidance_max=guidance,
        loss=settings["loss"],
        huber_c=settings["huber_c"] / length,
    )
    student, method = case.toy("student"), PCM(config, teacher)
    random = Recorded(uniforms=[(data["index"] + 0.5) / 50, torch.zeros(4)], normals=[data["noise"]])
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    power = 2 if settings["loss"] == "l2" else 1
    case.holds(length**power * loss_of(STUDENT, method, batch, {STUDENT: student}).mean(), student)


@cases("tdm")
def test_tdm(name: str) -> None:
    case = Case("tdm", name)
    data, process = case.inputs, stable_diffusion()

    def length(time: Tensor) -> Tensor:  # of the process's state, in the flow's
        return (process.alpha(time) + process.sigma(time)).reshape(-1, 1, 1, 1)

    end, t = process.flow_time(data["end"]), process.flow_time(data["t"])
    x, noise = data["x0"], data["noise"]
    x_end = process.add_noise(x, data["eps"], data["end"]) / length(data["end"])
    x_t = noised_further(x_end, end, t, noise)
    agree(length(data["t"]) * x_t, case.raw_given("noised"), "noised")
    velocity = (x_t - data["y_fake"]) / t.reshape(-1, 1, 1, 1)
    agree(fake_loss(TDMConfig(), velocity, x, x_t, t, noise).loss, case.raw_given("fake_losses"), "fake_losses")
    teacher = ToyTeacher(Toy({key: [[0.0]] for key in ("w1", "b1", "w2", "b2")}), FlowProcess(), "flow")
    for loss in ("huber", "l2"):
        moving = x.clone().requires_grad_()
        scores = Scores(x_t=x_t, t=t, y_teacher=data["y_teacher"], y_fake=data["y_fake"])
        batch = toy_batch(teacher, x, torch.zeros(4), Recorded(uniforms=[], normals=[]))
        found = TDM(TDMConfig(loss=loss), teacher).generator_loss(moving, scores, batch).loss.mean() / x[0].numel()
        case.agrees(found, loss)
        case.agrees(torch.autograd.grad(found, moving)[0], f"{loss}_gradient")


@cases("ect")
def test_ect(name: str) -> None:
    case = Case("ect", name)
    data, stage, c = case.inputs, case.settings["stage"], case.settings["c"]
    # its data have a standard deviation of 0.5, and so its noise levels are half of ddx's
    student = case.toy("student")
    teacher = ToyTeacher(case.toy("student"), EDMProcess(), "x0", lambda t: (t / 2.0).log() / 4.0, scale=2.0)
    root = data["noise"][0].numel() ** 0.5  # its distance is of a sum, ddx's of a mean
    method = ECT(ECTConfig(huber_c=max(2.0 * c / root, 1e-9)), teacher)
    uniform = torch.special.ndtr(data["normal"])
    random = Recorded(uniforms=[uniform, uniform], normals=[data["noise"]])
    batch = toy_batch(teacher, 2.0 * data["images"], data["classes"], random, progress=(stage + 0.5) / 8)
    case.holds(root * loss_of(STUDENT, method, batch, {"student": student}).mean(), student)


@cases("tcm")
def test_tcm(name: str) -> None:
    case = Case("tcm", name)
    data, settings = case.inputs, case.settings
    student, first = case.toy("student"), case.toy("first")
    teacher = ToyTeacher(case.toy("first"), EDMProcess(), "x0", lambda t: (t / 2.0).log() / 4.0, scale=2.0)
    root = data["noise"][0].numel() ** 0.5  # its distance is of a sum, ddx's of a mean
    config = TCMConfig(
        huber_c=2.0 * settings["c"] / root,
        num_stages=settings["stage"] + 1,  # the last one, in which the second stage stays
        truncation_time=2.0 / 3.0,  # a noise level of 2, its 1
        boundary_share=settings["boundary_share"],
        boundary_loss_weight=settings["boundary_loss_weight"],
    )
    method = TCM(config, teacher)
    uniforms = [data["share"], 1.0 - data["at_boundary"], data["share"]]
    random = Recorded(uniforms=uniforms, normals=[data["noise"]])
    batch = toy_batch(teacher, 2.0 * data["images"], data["classes"], random, step=1)
    case.holds(root * loss_of(STUDENT, method, batch, {STUDENT: student, FIRST: first}).mean(), student)


class LogVariance(nn.Module):
    """The log variance a + b tau that the reference's weight of the times was."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, tau: Tensor) -> Tensor:
        return self.values[0] + self.values[1] * tau


def consistency_draws(data: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The uniforms and normals of sCM's loss at the reference's times, guidance from 4 to 5 and noise."""
    return [torch.special.ndtr(data["normal"]), data["guidance"] - 4.0], [data["noise"]]


@cases("scm")
def test_scm(name: str) -> None:
    case = Case("scm", name)
    data = case.inputs
    student, u = case.toy("student", takes=["guidance"]), LogVariance(case.raw("logvar"))
    teacher = ToyTeacher(case.toy("teacher"), FlowProcess(), "flow")
    method = SCM(SCMConfig(guidance_min=4.0, guidance_max=5.0), teacher)
    uniforms, normals = consistency_draws(data)
    random = Recorded(uniforms=uniforms, normals=normals)
    progress = case.settings["warmup"] * method.config.tangent_warmup
    batch = toy_batch(teacher, data["latents"], data["classes"], random, progress=progress)
    losses = method.losses(Turn(trains=(STUDENT, WEIGHT)), batch, {STUDENT: student, WEIGHT: u}).by_network
    case.holds(losses[STUDENT].mean(), student)
    case.agrees(torch.autograd.grad(losses[WEIGHT].mean(), u.values)[0], "logvar_gradient")


@cases("sana_sprint")
def test_sana_sprint(name: str) -> None:
    case = Case("sana_sprint", name)
    data, of_student = case.inputs, name == "student"
    student, heads = case.toy("student", takes=["guidance"]), Heads(case.raw("head"))
    teacher = ToyTeacher(case.toy("teacher"), FlowProcess(), "flow")
    config = SanaSprintConfig(
        head_condition=False, noise_share=0.5 if of_student else 0.0, tangent_warmup=0.1, guidance_set=None
    )
    method = SanaSprint(config, teacher)
    networks = {STUDENT: student, DISCRIMINATOR: heads}
    at = torch.special.ndtr(data["judge_normal"])
    if not of_student:
        t, guidance = consistency_draws(data)[0]
        random = Recorded(
            uniforms=[guidance, t, t, at],
            normals=[data[key] for key in ("noise", "real_noise", "fake_noise", "noise", "misaligned_noise")],
        )
        latents = data["latents"]
        batch = toy_batch(teacher, latents, data["classes"], random, neighbour=latents.roll(1, 0))
        loss = 0.5 * loss_of(DISCRIMINATOR, method, batch, networks).mean()  # half of the hinge's two terms
        case.agrees(loss, "loss")
        case.agrees(torch.autograd.grad(loss, heads.weight)[0], "head_gradient")
        return
    uniforms, normals = consistency_draws(data)
    again = [uniforms[1], torch.special.ndtr(data["second_normal"]), data["second_u"], at]
    unused = data["judge_noise"]  # of the real latents, which the student's turn does not look at
    random = Recorded(uniforms=uniforms + again, normals=[*normals, data["second_noise"], unused, data["judge_noise"]])
    progress = case.settings["warmup"] * method.config.tangent_warmup
    batch = toy_batch(teacher, data["latents"], data["classes"], random, progress=progress)
    turn, u = Turn(trains=(STUDENT, WEIGHT)), LogVariance(case.raw("logvar"))
    losses = method.losses(turn, batch, {**networks, WEIGHT: u})
    case.holds((losses.by_network[STUDENT] + losses.secondary[STUDENT]).mean(), student)


@cases("sid")
def test_sid(name: str) -> None:
    case = Case("sid", name)
    data, settings = case.inputs, case.settings
    student, fake = case.toy("student"), case.toy("fake")
    first = settings["init_sigma"]
    teacher = ToyTeacher(case.toy("teacher"), EDMProcess(), "x0", lambda t: t.log() / 4.0)
    method = SiD(SiDConfig(start_time=first / (1.0 + first), alpha=settings["alpha"]), teacher)
    networks = {STUDENT: student, FAKE: fake}
    count, zero = data["noise"][0].numel(), torch.zeros(4, dtype=torch.float64)
    start = first / (1.0 + first**2) ** 0.5  # ddx starts at the spread of a noisy picture, the reference at sigma z

    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    sigma = (high + (1.0 - data["u"] * settings["t_max"] / 1000) * (low - high)) ** 7
    uniform = quantile(sigma / (1.0 + sigma), method)
    random = Recorded(uniforms=[zero, zero, uniform], normals=[start * data["z"], data["noise"]])
    batch = toy_batch(teacher, data["noise"], data["classes"], random)
    case.holds(count * loss_of(STUDENT, method, batch, networks).mean(), student)  # a sum over elements

    sigma = (1.2 * data["fake_normal"] - 1.2).exp()
    t = sigma / (1.0 + sigma)
    random = Recorded(uniforms=[zero, zero, quantile(t, method)], normals=[start * data["fake_z"], data["fake_noise"]])
    batch = toy_batch(teacher, data["noise"], data["classes"], random)
    of_x0 = t**2 * (sigma**2 + 0.25) / (0.5 * sigma) ** 2  # EDM's weight of the error of x0, which is t times that of v
    loss = (count * of_x0 * loss_of(FAKE, method, batch, networks)).mean()
    case.holds(loss, fake, of="fake_loss", gradient="fake_gradient")


@cases("sida")
def test_sida(name: str) -> None:
    case = Case("sida", name)
    data, settings = case.inputs, case.settings
    student, fake = case.toy("student"), case.toy("fake")
    first = settings["init_sigma"]
    teacher = ToyTeacher(case.toy("teacher"), EDMProcess(), "x0", lambda t: t.log() / 4.0)
    teacher.denoiser_part = "unet"  # logits are means over channels
    even = {"time_sampling": "uniform", "score_weight": "distance", "alpha": settings["alpha"]}
    config = SiDAConfig(num_steps=1, start_time=first / (1.0 + first), gan_weight=1.0, **even)
    method = SiDA(config, teacher)
    networks = {STUDENT: student, FAKE: fake}
    count, zero = data["noise"][0].numel(), torch.zeros(1, dtype=torch.float64)
    start = first / (1.0 + first**2) ** 0.5  # ddx starts at the spread of a noisy picture, the reference at sigma z

    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    sigma = (high + (1.0 - data["u"] * settings["t_max"] / 1000) * (low - high)) ** 7
    uniform = quantile(sigma / (1.0 + sigma), method)
    random = Recorded(uniforms=[zero, zero, uniform], normals=[start * data["z"], data["noise"]])
    batch = toy_batch(teacher, data["real"], data["classes"], random)
    losses = method.losses(Turn(trains=(STUDENT,)), batch, networks)
    case.holds(count * losses.by_network[STUDENT].mean(), student)  # a sum over elements
    case.holds(count * losses.secondary[STUDENT].mean(), student, of="gan_loss", gradient="gan_gradient")

    sigma = (1.2 * data["fake_normal"] - 1.2).exp()
    t = sigma / (1.0 + sigma)
    of_x0 = (sigma**2 + 0.25) / (0.5 * sigma) ** 2  # EDM's weight of the error of x0, which is t times that of v
    found = []
    for weight in (0.0, 1.0):
        method = SiDA(replace(config, fake_gan_weight=weight), teacher)
        normals = [start * data["fake_z"], data["fake_noise"]]
        random = Recorded(uniforms=[zero, zero, quantile(t, method)], normals=normals)
        batch = toy_batch(teacher, data["real"], data["classes"], random)
        found.append(loss_of(FAKE, method, batch, networks))
    loss = (count * of_x0 * t**2 * found[0]).mean()
    case.holds(loss, fake, of="fake_loss", gradient="fake_gradient")
    judged = (of_x0 * (found[1] - found[0])).mean()
    case.holds(judged, fake, of="judge_loss", gradient="judge_gradient")


@cases("sid_lsg")
def test_sid_lsg(name: str) -> None:
    case = Case("sid_lsg", name)
    data, settings = case.inputs, case.settings
    student, fake = case.toy("student"), case.toy("fake")
    process = stable_diffusion()
    teacher = ToyTeacher(case.toy("teacher"), process, settings["prediction"], lambda t: t / 1000.0)
    kappas = {key: settings[key] for key in ("kappa1", "kappa2", "kappa4")}
    method = SiDLSG(SiDLSGConfig(alpha=settings["alpha"], **kappas), teacher)
    networks = {STUDENT: student, FAKE: fake}
    count, zero = data["noise"][0].numel(), torch.zeros(4, dtype=torch.float64)
    sigma = process.sigma(torch.tensor(settings["init_timestep"]))  # ddx starts at z, the reference at sigma z

    uniform = quantile(process.flow_time(data["timesteps"]), method)
    random = Recorded(uniforms=[zero, zero, uniform], normals=[sigma * data["z"], data["noise"]])
    batch = toy_batch(teacher, data["noise"], data["classes"], random)
    case.holds(count * loss_of(STUDENT, method, batch, networks).mean(), student)  # a sum over elements

    times = data["fake_timesteps"]
    uniform = quantile(process.flow_time(times), method)
    random = Recorded(uniforms=[zero, zero, uniform], normals=[sigma * data["fake_z"], data["fake_noise"]])
    batch = toy_batch(teacher, data["noise"], data["classes"], random)
    loss = (count * loss_of(FAKE, method, batch, networks)).mean()
    case.holds(loss, fake, of="fake_loss", gradient="fake_gradient")


@cases("dmd2")
def test_dmd2(name: str) -> None:
    case = Case("dmd2", name)
    data, settings = case.inputs, case.settings
    student, fake, heads = case.toy("student"), case.toy("fake"), Heads(case.raw("head"))
    process, scale = stable_diffusion(), settings["guidance"]
    teacher = ToyTeacher(case.toy("teacher"), process, "eps", lambda t: t / 1000.0)
    weights = {key: settings[key] for key in ("gan_weight", "fake_gan_weight")}
    method = DMD2(DMD2Config(num_steps=1, guidance_min=scale, guidance_max=scale, **weights), teacher)
    networks = {STUDENT: student, FAKE: fake, DISCRIMINATOR: heads}
    zero = torch.zeros(4, dtype=torch.float64)
    at = {key: quantile(process.flow_time(data[key]), method) for key in data if key.endswith("timesteps")}

    unused = data["noise"]  # of the stored latents, which the student's turn does not look at
    random = Recorded(
        uniforms=[zero, zero, at["timesteps"], at["gan_timesteps"]],
        normals=[data["z"], data["noise"], unused, data["gan_noise"]],
    )
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    losses = method.losses(Turn(trains=(STUDENT,)), batch, networks)
    case.holds(losses.by_network[STUDENT].mean(), student)
    of_judge = losses.secondary[STUDENT].mean() / settings["gan_weight"]
    case.holds(of_judge, student, of="gan_loss", gradient="gan_gradient")

    random = Recorded(
        uniforms=[zero, zero, at["fake_timesteps"], at["judge_timesteps"]],
        normals=[data[key] for key in ("fake_z", "fake_noise", "real_noise", "generated_noise")] + [unused],
    )
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    losses = method.losses(Turn(trains=(FAKE, DISCRIMINATOR)), batch, networks)
    case.holds(losses.by_network[FAKE].mean(), fake, of="fake_loss", gradient="fake_own_gradient")
    judged = losses.by_network[DISCRIMINATOR].mean()
    case.agrees(judged, "judge_loss")
    case.agrees(torch.autograd.grad(judged, heads.weight, retain_graph=True)[0], "head_gradient")
    # the reference scales the whole loss by this weight, ddx what of it reaches the fake score
    reaching = {key: value / settings["fake_gan_weight"] for key, value in fake.gradients(judged).items()}
    for key, value in reaching.items():
        agree(value, case.raw_given("fake_gan_gradient")[key], key)


@cases("meanflow")
def test_meanflow(name: str) -> None:
    case = Case("meanflow", name)
    data, settings = case.inputs, case.settings
    student = case.toy("student", takes=["interval"])
    teacher = ToyTeacher(case.toy("student"), FlowProcess(), "flow")
    share = settings["same_time_share"]
    config = MeanFlowConfig(velocity_from="data", same_time_share=share, error_power=settings["power"])
    t, r = (torch.special.ndtr(data[key]) for key in ("normal_t", "normal_r"))
    random = Recorded(uniforms=[t, r, data["u_same"], t], normals=[data["noise"]])
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    case.holds(loss_of(STUDENT, MeanFlow(config, teacher), batch, {STUDENT: student}).mean(), student)


@cases("rcgm")
def test_rcgm(name: str) -> None:
    case = Case("rcgm", name)
    data, guidance = case.inputs, case.settings["guidance"]
    student, target = (case.toy(network, takes=["interval"]) for network in ("student", "target"))
    teacher = ToyTeacher(case.toy("target"), FlowProcess(), "flow")
    config = RCGMConfig(
        velocity_from="data",
        guidance_min=guidance,
        guidance_max=guidance,
        same_time_share=0.0,
        target_jumps=case.settings["target_jumps"],
    )
    t, r = data["t"], data["r"]
    random = Recorded(uniforms=[t, t, r / t, t], normals=[data["noise"]])
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    case.holds(loss_of(STUDENT, RCGM(config, teacher), batch, {STUDENT: student, TARGET: target}).mean(), student)


@cases("shortcut")
def test_shortcut(name: str) -> None:
    case = Case("shortcut", name)
    data, smallest = case.inputs, case.settings["smallest_jumps"]
    networks = {STUDENT: case.toy("student", takes=["interval"])}
    if case.settings["average"]:
        networks[TARGET] = case.toy("target", takes=["interval"])
    teacher = ToyTeacher(case.toy("target"), FlowProcess(), "flow")
    config = ShortcutConfig(velocity_from="data", smallest_jumps=smallest, target_decay=0.0)
    method = Shortcut(config, teacher)
    twice, once = torch.arange(8).chunk(2)
    levels = math.log2(smallest)
    t = 1.0 - data["t"]  # its time runs from noise to picture
    t[twice] -= 0.5 ** (1.0 + data["level"][twice])  # within the jump that ddx starts above it
    at = (t - method.view.t_min) / (method.view.t_max - method.view.t_min)
    random = Recorded(uniforms=[at, at, (data["level"] + 0.5) / levels], normals=[data["noise"]], parts=[twice, once])
    latents = data["images"] + 1e-5 * data["noise"]  # what it leaves of the noise in the picture
    batch = toy_batch(teacher, latents, data["classes"], random)
    case.holds(loss_of(STUDENT, method, batch, networks).mean(), networks[STUDENT])


@cases("twinflow")
def test_twinflow(name: str) -> None:
    case = Case("twinflow", name)
    data, settings = case.inputs, case.settings
    student, target = (case.toy(network, takes=["interval"]) for network in ("student", "target"))
    teacher = ToyTeacher(case.toy("target"), FlowProcess(), "flow")
    full, near, anywhere, fake = torch.arange(8).reshape(4, 2).unbind()
    t, r, guidance = data["t"].abs(), data["r"], settings["guidance"]
    drawn = t.index_copy(
        0, full, data["match_t"]
    )  # what jumps all the way starts at 1, and is noised to its drawn time
    # the fakes start from numbers of their own, and all others' second numbers are those of the rectification
    noise = data["noise"].index_copy(0, fake, data["fake_start"])
    fresh = data["noise"].index_copy(0, full, data["match_noise"])

    def rows_of(**settings_of_ours: Any) -> Tensor:
        config = TwinFlowConfig(
            drawing="path",
            velocity_from="data",
            guidance_min=guidance,
            guidance_max=guidance,
            target_jumps=settings["target_jumps"],
            rectify_weight=settings["rectify_weight"],
            **settings_of_ours,
        )
        random = Recorded(
            uniforms=[t, drawn, r / drawn, t, (t - r) / (t * 0.05)],
            normals=[noise, fresh],
            parts=[full, near, fake, anywhere],
        )
        batch = toy_batch(teacher, data["latents"], data["classes"], random)
        return loss_of(STUDENT, TwinFlow(config, teacher), batch, {STUDENT: student, TARGET: target})

    case.holds(rows_of(loss="l2").mean(), student)
    # the reference's loss is Barron's of the same mean squares; of fakes alone there is one, with weight 1
    square = rows_of(loss="l2")[fake].detach()
    expected = square / (1e-3 * (square / (1e-6 + 1e-8) + 1.0).sqrt())
    torch.testing.assert_close(rows_of()[fake].detach(), expected, rtol=1e-5, atol=0)


@cases("imf")
def test_imf(name: str) -> None:
    case = Case("imf", name)
    data, highest = case.inputs, case.settings["guidance_max"]
    student = case.toy("student", takes=["interval", "guidance"])
    teacher = ToyTeacher(case.toy("student"), FlowProcess(), "flow")
    config = IMFConfig(
        velocity_from="data",
        guidance_min=1.0,
        guidance_max=highest,
        weight_floor=case.settings["weight_floor_of_sum"] / data["noise"][0].numel(),  # ddx's is of the mean
    )
    t, r = (torch.special.ndtr(data[key]) for key in ("normal_t", "normal_r"))
    uniforms = [(data["guidance"] - 1.0) / (highest - 1.0), t, r, 1.0 - data["same"]]
    random = Recorded(uniforms=uniforms, normals=[data["noise"]])
    batch = toy_batch(teacher, data["latents"], data["classes"], random)
    losses = IMF(config, teacher).losses(Turn(trains=(STUDENT,)), batch, {STUDENT: student})
    case.agrees(losses.tracked["squared_error"].mean(), "loss")
    for key, value in student.gradients(losses.by_network[STUDENT].mean()).items():
        agree(value, case.raw_given("gradient")[key], key)


@cases("ladd")
def test_ladd(name: str) -> None:
    case = Case("ladd", name)
    data = case.inputs
    student, heads = case.toy("student"), Heads(case.raw("head"))
    teacher = ToyTeacher(case.toy("teacher"), FlowProcess(), "flow")
    config = LADDConfig(
        num_steps=4, noise_share=0.0, gan_loss="softplus", head_condition=False, time_sampling="uniform"
    )
    method, networks = LADD(config, teacher), {STUDENT: student, DISCRIMINATOR: heads}
    step = 4.0 * (1.0 - data["start"])  # of the sampler, from 0 at pure noise
    for turn in (STUDENT, DISCRIMINATOR):
        random = Recorded(
            uniforms=[(step + 0.5) / 4, torch.ones_like(step), data["t"]],
            normals=[data[key] for key in ("start_noise", "real_noise", "fake_noise", "start_noise")],
        )
        batch = toy_batch(teacher, data["latents"], data["classes"], random)
        loss = loss_of(turn, method, batch, networks).mean()
        if turn == STUDENT:
            case.holds(loss, student)
        else:
            case.agrees(loss, "judge_loss")
            case.agrees(torch.autograd.grad(loss, heads.weight)[0], "head_gradient")
