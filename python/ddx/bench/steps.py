"""Whole training steps of a SANA transformer with random weights, as the methods take them, with ddx and without.

Each step owns its networks and one fixed batch, and `run()` does all of it: forward passes, loss, backward, optimiser.
Students are trained in float32 under bfloat16 autocast, frozen teachers are bfloat16: what `ddx distill` does on a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddx.bench.case import Size
from ddx.kernels.consistency import consistency_loss, consistency_loss_reference
from ddx.kernels.scm_tangent import scm_loss, scm_loss_reference
from ddx.kernels.sid import sid_loss, sid_loss_reference
from ddx.teachers.families.sana_dual import dual_forward
from ddx.teachers.families.sana_fused import fuse

GUIDANCE = 4.5
SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a step runs on. The defaults are SANA-600M; `ours` puts the kernels, losses and dual forward of ddx in."""

    size: Size
    device: torch.device
    ours: bool
    layers: int = 28
    text_width: int = 2304
    compiled: bool = False

    @property
    def narrow(self) -> torch.dtype:
        """What forward passes run in: bfloat16 on a GPU; a CPU has no use for it."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def network(self, *, trained: bool) -> nn.Module:
        """Return a transformer with random weights, the same ones each time."""
        torch.manual_seed(0)
        network: Any = sana_transformer(self.size, layers=self.layers, text_width=self.text_width)
        # diffusers' own `to` warns of modules that must stay in float32, and names none
        nn.Module.to(network, self.device, torch.float32 if trained else self.narrow)
        network.train(trained).requires_grad_(trained)
        if self.ours:
            fuse(network)
        if self.compiled:
            network.compile()
        module: nn.Module = network
        return module


class Step(ABC):
    """One training step. A subclass makes its networks, and says what one step does."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        size, device = setting.size, setting.device
        torch.manual_seed(1)
        self.x0 = self.noise()
        text = torch.randn(size.batch + 1, size.text_tokens, setting.text_width, device=device, dtype=setting.narrow)
        self.text, self.null_text = text[:-1], text[-1:].expand(size.batch, -1, -1)
        lengths = torch.linspace(size.text_tokens // 8, size.text_tokens, size.batch, device=device).long()
        self.mask = torch.arange(size.text_tokens, device=device) < lengths[:, None]
        self.null_mask = (torch.arange(size.text_tokens, device=device) < 1).expand(size.batch, -1)
        self.t = torch.linspace(0.1, 0.9, size.batch, device=device)

    @abstractmethod
    def run(self) -> Tensor:
        """Take one step and return the loss, a 0-d tensor."""

    def noise(self) -> Tensor:
        """Return unit noise of the latents' shape, from the device's own generator, which a CUDA graph replays too."""
        size = self.setting.size
        return torch.randn(size.batch, size.latent_channels, size.side, size.side, device=self.setting.device)

    def student(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a trained network and its optimiser."""
        network = self.setting.network(trained=True)
        capturable = self.setting.device.type == "cuda"  # it keeps its step counter on the device either way
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True, capturable=capturable)
        return network, optimizer

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Return the flow velocity float32 of a network at time `t` in [0, 1]."""
        dtype = next(network.parameters()).dtype
        output: Tensor = network(
            x.to(dtype), encoder_hidden_states=text, encoder_attention_mask=mask, timestep=1000 * t, return_dict=False
        )[0]
        return output.float()

    def conditional(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity for the captions."""
        return self.velocity(network, x, t, self.text, self.mask)

    def guided(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided velocity from one doubled batch."""
        text, mask = torch.cat([self.null_text, self.text]), torch.cat([self.null_mask, self.mask])
        null, cond = self.velocity(network, torch.cat([x, x]), torch.cat([t, t]), text, mask).chunk(2)
        return null + GUIDANCE * (cond - null)

    def autocast(self) -> torch.autocast:
        """Return the context of all forward passes."""
        return torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.setting.device.type == "cuda")

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Differentiate, take the optimiser's step, and return the loss."""
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class LCMStep(Step):
    """Latent consistency: a guided teacher step, the student at both ends. Three and a half forwards, one backward."""

    def __init__(self, setting: Setting) -> None:
        """Make teacher and student."""
        super().__init__(setting)
        self.teacher = setting.network(trained=False)
        self.network, self.optimizer = self.student()

    def run(self) -> Tensor:
        """See :meth:`Step.run`."""
        t, r = _rows(self.t), _rows(self.t - 0.05)
        with self.autocast():
            x_t = (1 - t) * self.x0 + t * self.noise()
            with torch.no_grad():
                x_r = x_t + (r - t) * self.guided(self.teacher, x_t, self.t)
                target = x_r - r * self.conditional(self.network, x_r, self.t - 0.05)
            prediction = x_t - t * self.conditional(self.network, x_t, self.t)
            distance = consistency_loss if self.setting.ours else consistency_loss_reference
            loss = distance(prediction, target).mean()
        return self.update(loss, self.optimizer)


class SiDStep(Step):
    """Score identity distillation with guidance in both scores: a generator's turn, then its fake score's."""

    def __init__(self, setting: Setting) -> None:
        """Make teacher, generator and fake score."""
        super().__init__(setting)
        self.teacher = setting.network(trained=False)
        self.generator_network, self.generator_optimizer = self.student()
        self.fake, self.fake_optimizer = self.student()

    def draw(self) -> Tensor:
        """Return what the generator draws from fresh noise in one evaluation."""
        z = self.noise()
        start = torch.full_like(self.t, 0.7)
        return z - 0.7 * self.conditional(self.generator_network, z, start)

    def run(self) -> Tensor:
        """See :meth:`Step.run`."""
        t = _rows(self.t)
        self.fake.requires_grad_(False)
        with self.autocast():
            x = self.draw()
            x_t = (1 - t) * x + t * self.noise()
            y_teacher = x_t - t * self.guided(self.teacher, x_t, self.t)
            y_fake = x_t - t * self.guided(self.fake, x_t, self.t)
            distance = sid_loss if self.setting.ours else sid_loss_reference
            loss = self.update(distance(y_teacher, y_fake, x).mean(), self.generator_optimizer)
        self.fake.requires_grad_(True)
        with self.autocast():
            with torch.no_grad():
                x, noise = self.draw(), self.noise()
                x_t = (1 - t) * x + t * noise
            error = self.conditional(self.fake, x_t, self.t) - (noise - x)
            self.update(error.square().mean(), self.fake_optimizer)
        return loss


class SCMStep(Step):
    """Continuous-time consistency distillation: a guided teacher, the student's exact tangent, one backward."""

    def __init__(self, setting: Setting) -> None:
        """Make teacher and student."""
        super().__init__(setting)
        self.teacher = setting.network(trained=False)
        self.network, self.optimizer = self.student()

    def run(self) -> Tensor:
        """See :meth:`Step.run`. Times and networks are joined as in :func:`to_flow` and :func:`from_flow`."""
        t = torch.atan(self.t / (1 - self.t) / SIGMA_DATA)
        cos, sin = _rows(t.cos()), _rows(t.sin())
        x_t = cos * SIGMA_DATA * self.x0 + sin * SIGMA_DATA * self.noise()
        x = x_t / SIGMA_DATA
        with self.autocast():
            with torch.no_grad():
                x_flow, time = to_flow(x, t)
                tangent = SIGMA_DATA * from_flow(x_flow, time, self.guided(self.teacher, x_flow, time))
                output, jvp = self.tangent(x, t, cos * sin * tangent / SIGMA_DATA, t.cos() * t.sin())
            x_flow, time = to_flow(x, t)
            trained = from_flow(x_flow, time, self.conditional(self.network, x_flow, time))
            distance = scm_loss if self.setting.ours else scm_loss_reference
            loss = distance(trained, output, tangent, jvp, x_t, t, torch.zeros_like(t), warmup=1.0).mean()
        return self.update(loss, self.optimizer)

    def tangent(self, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student in TrigFlow and its derivative along (dx, dt)."""
        if not self.setting.ours:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            def whole(x: Tensor, t: Tensor) -> Tensor:
                x_flow, time = to_flow(x, t)
                return from_flow(x_flow, time, self.conditional(self.network, x_flow, time))

            with sdpa_kernel(SDPBackend.MATH):
                found = torch.func.jvp(whole, (x, t), (dx, dt))
            return found[0], found[1]
        (x_flow, time), (dx_flow, dtime) = torch.func.jvp(to_flow, (x, t), (dx, dt))  # type: ignore[misc]
        velocity, dvelocity = dual_forward(
            self.network, x_flow, dx_flow, 1000 * time, 1000 * dtime, self.text, self.mask
        )
        found = torch.func.jvp(from_flow, (x_flow, time, velocity.float()), (dx_flow, dtime, dvelocity.float()))
        return found[0], found[1]


def sana_transformer(size: Size, *, layers: int, text_width: int) -> Any:
    """Return diffusers' transformer of this width, on the default device and of the default dtype."""
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        num_attention_heads=size.heads,
        attention_head_dim=32,
        num_layers=layers,
        num_cross_attention_heads=size.cross_heads,
        cross_attention_head_dim=size.cross_head_dim,
        cross_attention_dim=size.width,
        caption_channels=text_width,
        mlp_ratio=size.mlp_ratio,
        sample_size=size.side,
    )


STEPS: dict[str, type[Any]] = {"lcm": LCMStep, "sid": SiDStep, "scm": SCMStep}


def to_flow(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flow-matching input and time of a TrigFlow input of unit data and its angle `[B]`."""
    time = t.sin() / (t.sin() + t.cos())
    return x * _rows((time**2 + (1 - time) ** 2).sqrt()), time


def from_flow(x_flow: Tensor, time: Tensor, velocity: Tensor) -> Tensor:
    """Return the TrigFlow prediction of a flow velocity at what :func:`to_flow` gave."""
    time = _rows(time)
    straight = (1 - 2 * time) * x_flow + (1 - 2 * time + 2 * time**2) * velocity
    return straight / (time**2 + (1 - time) ** 2).sqrt()


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
