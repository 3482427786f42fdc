"""ddx's losses against what public reference implementations gave, number for number.

Each file in ``vectors/`` says which code was run (`source`), on which weights, latents and random numbers, and what it
returned: losses and gradients. Here the method's own `losses` sees the same. Where the two differ by design, by a
factor or a weight, the test states the difference and applies it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ddx.methods.base import STUDENT, TARGET, Turn
from ddx.methods.ect import ECT, ECTConfig
from ddx.methods.imf import IMF, IMFConfig
from ddx.methods.lcm import LCM, LCMConfig
from ddx.methods.meanflow import MeanFlow, MeanFlowConfig
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.methods.pcm import PCM, PCMConfig
from ddx.methods.rcgm import RCGM, RCGMConfig
from ddx.methods.sana_sprint import SanaSprint, SanaSprintConfig
from ddx.methods.scm import SCM, WEIGHT, SCMConfig
from ddx.methods.shortcut import Shortcut, ShortcutConfig
from ddx.methods.tcm import FIRST, TCM, TCMConfig
from ddx.methods.twinflow import TwinFlow, TwinFlowConfig
from ddx.process import EDMProcess, FlowProcess
from toys import Heads, Recorded, ToyTeacher, toy_batch
from vectors_of import Case, agree, cases, loss_of, stable_diffusion

torch.set_num_threads(1)


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
