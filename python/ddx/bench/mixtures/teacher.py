"""A teacher over a mixture: its network is the formula, its students are a small MLP. Latents are `[B, D, 1, 1]`.

It meets the contract of :class:`ddx.teachers.base.Teacher` as far as methods use it, so that the real methods and the
real trainer run on it. A condition is one token that holds the class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ddx.bench.mixtures.mixture import Mixture
from ddx.bench.mixtures.networks import MLP, Exact, Formula, PointEncoder
from ddx.process import EDMProcess, FlowProcess, PredictionKind, Process, VPProcess
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.samplers.sampler import TeacherSampler
from ddx.teachers.size import Size

SIGMA_DATA = 1.0


def ddpm_table() -> VPProcess:
    """Return the table of Ho et al. 2020: its end is noise, so that what is drawn from noise is the mixture."""
    return VPProcess(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def stable_diffusion_table() -> VPProcess:
    """Return the table of Rombach et al. 2022, whose noisiest time keeps 0.068 of the signal, ten times Ho et al.'s."""
    return VPProcess(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square())


PROCESSES: dict[str, tuple[Callable[[], Process], PredictionKind]] = {
    "flow": (FlowProcess, "flow"),
    "vp-eps": (ddpm_table, "eps"),
    "vp-eps-sd": (stable_diffusion_table, "eps"),
    "vp-v": (ddpm_table, "v"),
    "edm": (EDMProcess, "x0"),
}


class MixtureTeacher(Teacher):
    """A mixture under one of `PROCESSES`. `guidance` 1 leaves the classes as they are."""

    family = "mixture"
    lora_targets = ("inside", "outside", "0", "2")

    def __init__(self, mixture: Mixture, process: str = "flow", *, guidance: float = 1.0, seed: int = 0) -> None:
        make, self.prediction = PROCESSES[process]
        self.process = make()
        self.mixture, self.default_guidance = mixture, guidance
        self.name, self.device, self.dtype = f"mixture-{process}", torch.device("cpu"), torch.float32
        self.exact = Exact(mixture)
        torch.manual_seed(seed)
        self.fitted = MLP(mixture.means.shape[1], mixture.num_classes)
        self.frozen: nn.Module = self.exact

    def fit(self, steps: int = 1500, batch: int = 512, *, seed: int = 0) -> MixtureTeacher:
        """Train the network that students start from towards the formula; returns self. Some seconds.

        The formula as the target and not one draw's own noise: the network comes seven times as close in as many steps.
        """
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.fitted.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            classes = torch.randint(self.mixture.num_classes + 1, (batch,), generator=generator)
            x0 = self.mixture.draw(classes, generator)[:, :, None, None]
            noise = torch.randn(x0.shape, generator=generator)
            u = torch.rand(batch, generator=generator, dtype=torch.float64)
            t = self.process.time_of_position(u).clamp(min=self.process.t_min or 1e-3)
            x_t = self.process.add_noise(x0, noise, t)
            predicted = self.predict(self.fitted, x_t, t, self.condition(classes))
            exact = self.predict(self.exact, x_t, t, self.condition(classes))
            wanted = self.process.convert(exact, x_t, t, self.prediction, "flow")
            flow = self.process.convert(predicted, x_t, t, self.prediction, "flow")
            loss = (flow - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self

    def condition(self, classes: Tensor) -> Condition:
        """Return the condition of classes int64 `[B]`."""
        return Condition(classes[:, None, None].float(), torch.ones(len(classes), 1, dtype=torch.bool))

    def null_condition(self) -> Condition:
        """All modes."""
        return self.condition(torch.tensor([self.mixture.num_classes]))

    def network(self) -> nn.Module:
        """The frozen denoiser: the formula, or the fitted MLP where features are asked of it."""
        return self.frozen

    def freeze_fitted(self) -> MixtureTeacher:
        """Let the fitted MLP be the teacher: adversarial methods look at its features. Returns self."""
        self.frozen = copy.deepcopy(self.fitted).eval().requires_grad_(False)
        return self

    def new_student_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A copy of the fitted MLP."""
        return copy.deepcopy(self.fitted).to(dtype).train().requires_grad_(True)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`. On EDM the MLP is preconditioned as its paper has it."""
        classes = condition.tokens[:, 0, 0].long()
        t = t.double().expand(len(x_t))
        time = t.abs()
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        x = x_t.flatten(1)
        if isinstance(network, Formula):
            x0 = network.x0(x, alpha, sigma, classes).reshape(x_t.shape).to(x_t.dtype)
            return x0 if self.prediction == "x0" else self.process.convert(x0, x_t, time, "x0", self.prediction)
        angle = (self.process.angle(time) * torch.where(t < 0, -1.0, 1.0)).to(x.dtype)
        if self.prediction != "x0":
            output: Tensor = network(x, angle, classes).reshape(x_t.shape)
            return output
        sigma = sigma.to(x.dtype)[:, None]
        total = sigma**2 + SIGMA_DATA**2
        skip, out = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt()
        raw: Tensor = network(x / total.sqrt(), angle, classes)
        return (skip * x + out * raw).reshape(x_t.shape)

    def time_embedding_linear(self, network: nn.Module) -> nn.Linear:
        """``time_last``."""
        linear = network.get_submodule("time_last")
        assert isinstance(linear, nn.Linear)
        return linear

    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        """The blocks."""
        return list(network.get_submodule("blocks").children())

    def vae(self) -> nn.Module:
        """No autoencoder, but an encoder whose features of points a discriminator looks at: the frozen MLP's."""
        network = self.network()
        if not isinstance(network, MLP):
            raise ValueError("the formula has no features: freeze_fitted() lets the MLP be the teacher")
        return PointEncoder(network)

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """A point is its own picture."""
        return latents

    # what a mixture has no use for

    @property
    def compression(self) -> int:
        """1."""
        return 1

    @property
    def resolution_multiple(self) -> int:
        """1."""
        return 1

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """(D, 1, 1)."""
        return self.mixture.means.shape[1], 1, 1

    def _encode_pixels(self, pixels: Tensor) -> Any:
        raise NotImplementedError("a mixture has no pictures")

    def encode_text(self, prompts: Any) -> Any:
        """There is no text."""
        raise NotImplementedError("a mixture has no text")

    def _text_fingerprint(self) -> dict[str, Any]:
        return {}

    def sampling_scheduler(self, num_steps: int, latent_shape: tuple[int, ...]) -> Any:
        """Euler on equal steps of flow time, DDIM on trailing timesteps; of EDM there is none."""
        if isinstance(self.process, FlowProcess):
            scheduler = FlowMatchEulerDiscreteScheduler()
            sigmas = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
            scheduler.set_timesteps(sigmas=sigmas.tolist())
            return scheduler, scheduler.timesteps.double() / self.process.num_train_timesteps
        return TeacherSampler(name="ddim").steps(self, num_steps, latent_shape)

    def student_scheduler(self, sampler: Any = "consistency") -> Any:
        """There is no pipeline."""
        raise NotImplementedError("a mixture has no pipeline")
