"""Score distillation and adversarial losses against public reference implementations, see test_vectors.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ddx.methods.base import FAKE, STUDENT, Turn
from ddx.methods.dmd2 import DMD2, DMD2Config
from ddx.methods.ladd import LADD, LADDConfig
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.methods.parts.score_distillation import ScoreDistillation, Scores
from ddx.methods.sid import SiD, SiDConfig
from ddx.methods.sid_lsg import SiDLSG, SiDLSGConfig
from ddx.methods.sida import SiDA, SiDAConfig
from ddx.methods.tdm import TDM, TDMConfig, fake_loss, noised_further
from ddx.process import EDMProcess, FlowProcess
from toys import Heads, Recorded, Toy, ToyTeacher, toy_batch
from vectors_of import Case, agree, cases, loss_of, stable_diffusion

torch.set_num_threads(1)


def quantile(t: Tensor, method: ScoreDistillation) -> Tensor:
    """The uniform number that a method of score distillation makes the flow time t of."""
    config, view = method.config, method.view
    if method.draws_timesteps:
        step = view.process.time_at(torch.atan2(t, 1.0 - t)).round()
        return ((step + 0.5) / (view.process.t_max + 1.0) - config.time_low) / (config.time_high - config.time_low)
    return ((t - view.t_min) / (view.t_max - view.t_min) - config.time_low) / (config.time_high - config.time_low)


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
