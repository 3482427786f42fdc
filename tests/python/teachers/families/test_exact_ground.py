"""Every family's adapter on a mixture with a known denoiser, which its own network answers with in its conventions.

The conventions are stated in `tiny/<family>.py`, apart from the adapter; the family's pipeline in diffusers is the
judge of the statement.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from closed_form import ClosedForm
from ddx.bench.mixtures.gate import Modes, gate
from ddx.bench.mixtures.mixture import scattered
from ddx.bench.mixtures.run import FastRandomNumbers
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.methods.base import STUDENT, Batch, Turn
from ddx.methods.lcm import LCM, LCMConfig
from ddx.methods.parts.flow_view import FlowView, rows
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.registry import load_teacher
from tiny import NAMES, Tiny, open_pipeline


class Ground:
    """A family's teacher and its pipeline over one network, which answers with the mixture's formula."""

    def __init__(self, name: str, variant: str, folder: Path) -> None:
        self.tiny = Tiny(name)
        path = self.tiny.make(folder / name, variant)
        self.teacher: Teacher = load_teacher(path)
        self.pipeline: Any = open_pipeline(path, **{self.teacher.denoiser_part: self.teacher.network()})
        for part in self.teacher.stored_parts:
            self.teacher.use_part(part, getattr(self.pipeline, part))
        self.pixels = (2 * self.teacher.resolution_multiple, self.teacher.resolution_multiple)  # not a square
        self.shape = self.teacher.latent_shape(self.pixels)
        dimensions = self.shape[0] * self.shape[1] * self.shape[2]
        self.mixture = MixtureTeacher(scattered(2, dimensions, radius=2.0, std=0.6))  # which few steps draw
        self.mixture.process, self.mixture.prediction = self.teacher.process, self.teacher.prediction
        self.convention = self.tiny.convention(self.teacher.process)
        self.answers = ClosedForm(self.mixture, self.mixture.exact, self.shape)
        self.network = self.answers.wear(self.teacher.network(), self.convention)
        (text,) = self.teacher.encode_text(["a red circle"])
        self.condition = Condition(text.tokens[:, :4], text.mask[:, :4], text.pooled)  # short, to be quick

    def arguments(self, steps: int) -> dict[str, Any]:
        """Of the pipeline's call, without guidance."""
        height, width = self.pixels
        sigmas = getattr(self.teacher, "sampling_sigmas", None)
        times = {"num_inference_steps": steps, **({} if sigmas is None else {"sigmas": sigmas(steps)})}
        (call,) = (family.call for family in FAMILIES if family.name == self.tiny.name)
        return {"height": height, "width": width, **times, **self.tiny.guided(1.0), **call.always}

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Pictures of the mixture, as latents."""
        every = torch.full((num,), self.mixture.mixture.num_classes)
        return self.mixture.mixture.draw(every, generator).reshape(num, *self.shape)

    def noise(self, num: int) -> Tensor:
        return torch.randn(num, *self.shape, generator=torch.Generator().manual_seed(1))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """What the adapter says."""
        return FlowView(self.teacher).velocity(self.network, x, t, self.condition.expand(len(x)))

    def exact_velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """(x - E[x0 | x]) / t on the flow path, float64, by the formula alone."""
        points, every = x.flatten(1).double(), torch.full((len(x),), self.mixture.mixture.num_classes)
        x0 = self.mixture.mixture.x0(points, 1 - t, t, every)
        return ((points - x0) / t[:, None]).reshape(x.shape)


CASES = [(name, variant) for name in NAMES for variant in ("", *Tiny(name).variants)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(filter(None, case)))
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    torch.set_num_threads(1)
    return Ground(*request.param, tmp_path_factory.mktemp(request.param[0]))


def errors(ground: Ground) -> Tensor:
    """The adapter's error at states of all times, relative to the velocity; float64 `[32]`."""
    view, generator = FlowView(ground.teacher), torch.Generator().manual_seed(2)
    t = view.t_min + (view.t_max - view.t_min) * torch.linspace(0.02, 1.0, 32, dtype=torch.float64)
    x0 = ground.draw(len(t), generator)
    x = rows(1 - t, x0) * x0 + rows(t, x0) * ground.noise(len(t))
    exact = ground.exact_velocity(x, t)
    return (ground.velocity(x, t) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def test_the_flow_view_of_its_adapter_is_the_mixture_s_velocity(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of float32 pictures and times; with a network of any other convention it is far from it."""
    assert float(errors(ground).max()) < 3e-5
    own, (picture, noise) = ground.convention, ground.convention.times
    for other in (
        dataclasses.replace(own, sign=-own.sign),
        dataclasses.replace(own, times=(noise, picture)),
        dataclasses.replace(own, times=(1000 * picture, 1000 * noise)),
        dataclasses.replace(own, times=(1.05 * picture, 1.05 * noise)),
        dataclasses.replace(own, layout=lambda latents: own.layout(latents.flip(1))),
    ):
        monkeypatch.setattr(ground.answers, "convention", other)
        assert float(errors(ground).max()) > 0.01, other


def test_the_ode_ends_in_the_mixture_s_samples(ground: Ground) -> None:
    """In those of the formula's own ODE; six steps pass the gate."""
    view = FlowView(ground.teacher)
    for steps, num in ((1, 8), (2, 8), (6, 1000)):
        start = view.start(ground.noise(num), view.t_max)
        exact = view.ode_end(ground.exact_velocity, start.double(), steps)
        found = view.ode_end(ground.velocity, start[:8], steps)
        torch.testing.assert_close(found.double(), exact[:8], rtol=0.0, atol=1e-4)
    assert gate(exact.flatten(1), Modes.of(ground.mixture.mixture)).passed


def test_its_pipeline_draws_the_same_samples_from_the_same_network(ground: Ground) -> None:
    """Down to what its autoencoder is given: the pipeline knows the family's table, times, sign, layout and scale."""
    teacher, pipeline, steps, seeds = ground.teacher, ground.pipeline, 6, range(3)
    scheduler, _ = teacher.sampling_scheduler(steps, ground.shape)
    pipeline.scheduler = own_scheduler(pipeline.scheduler.config, scheduler)
    given: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        decode = pipeline.vae.decode

        def record(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append(z)
            return decode(z, *args, **kwargs)

        patch.setattr(pipeline.vae, "decode", record)
        pipeline(
            prompt="a red circle",
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **ground.arguments(steps),
        )
        noise = teacher.initial_noise([torch.Generator().manual_seed(seed) for seed in seeds], ground.pixels)
        drawn = teacher.sample(ground.condition.expand(3), ground.condition, num_steps=steps, guidance=1.0, noise=noise)
        with torch.no_grad():
            teacher.decode_pixels(drawn)
        expected, found = given
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)
        # what its decoder is given is what its encoder would give a store
        posterior = SimpleNamespace(mode=lambda: expected, logvar=expected) if teacher.has_posterior else expected
        patch.setattr(pipeline.vae, "encode", lambda *_args, **_kwargs: (posterior,))
        stored = teacher.encode_images(torch.zeros(3, *ground.pixels, 3, dtype=torch.uint8))
    torch.testing.assert_close(teacher.scale(stored), drawn, rtol=0.0, atol=1e-4)
    nearest = torch.cdist(drawn.flatten(1).double(), ground.mixture.mixture.means).min(dim=1).values
    assert float(nearest.max()) < 2 * ground.mixture.mixture.std * drawn[0].numel() ** 0.5


def own_scheduler(config: Any, like: Any) -> Any:
    """The pipeline's, as the solver that the teacher draws with: its table or its shift stay."""
    if "shift" in like.config:
        return type(like).from_config(config, **({"shift": config["flow_shift"]} if "flow_shift" in config else {}))
    solver = ("clip_sample", "set_alpha_to_one", "steps_offset", "timestep_spacing")
    return type(like).from_config(config, **{key: like.config[key] for key in solver})


def test_a_student_has_the_plain_ground_s_loss_and_gradient(ground: Ground) -> None:
    """Latent consistency distillation of the mixture, with the MLP in the conventions of the family's network."""
    teacher, plain = ground.teacher, ground.mixture
    config = LCMConfig(guidance_min=1.0, guidance_max=1.0, target_decay=0.0, solver_steps=8)
    student = ClosedForm(plain, copy.deepcopy(plain.fitted), ground.shape)
    network = student.wear(teacher.new_student_network(), ground.convention)
    x0 = ground.draw(32, torch.Generator().manual_seed(3))

    def loss_and_gradients(on: Teacher, network: nn.Module, mlp: nn.Module, condition: Condition) -> list[Tensor]:
        batch = Batch(x0=x0, condition=condition.expand(len(x0)), null=condition, random=FastRandomNumbers(4, len(x0)))
        losses = LCM(config, on).losses(Turn(trains=(STUDENT,)), batch, {STUDENT: network})
        loss = losses.by_network[STUDENT]
        return [loss.detach(), *torch.autograd.grad(loss.mean(), tuple(mlp.parameters()))]

    expected = loss_and_gradients(plain, plain.fitted, plain.fitted, plain.null_condition())
    found = loss_and_gradients(teacher, network, student.model, ground.condition)
    for value, wanted in zip(found, expected, strict=True):
        assert float((value - wanted).norm() / wanted.norm()) < 1e-4
