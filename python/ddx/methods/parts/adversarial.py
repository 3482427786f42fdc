"""What adversarial losses share: their forms, the gradient penalty, and a discriminator on a network's features.

    hinge         D: relu(1 - D(real)) + relu(1 + D(fake))         G: -D(fake)
    softplus      D: softplus(-D(real)) + softplus(D(fake))        G: softplus(-D(fake))
    relativistic  D: softplus(D(fake) - D(real))                   G: softplus(D(real) - D(fake))
    R1            (weight / 2) |grad D|^2 at the noised real input (Mescheder et al. 2018)

Goodfellow et al. 2014 (softplus, non-saturating); Lim & Ye 2017 (hinge); Jolicoeur-Martineau 2018 (relativistic). R1 by
a finite difference, ``(D(x) - D(x + s n))^2 / s^2`` for unit noise n, has the same mean up to O(s^2) and needs no
second derivative of the network (Lin et al. 2025, arXiv:2501.08316).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddx.config import option
from ddx.methods.base import NetworkSpec
from ddx.methods.parts.config import above_zero, at_least
from ddx.methods.parts.flow_view import FlowView
from ddx.networks.heads import KINDS, Discriminator
from ddx.teachers.condition import Condition

DISCRIMINATOR = "discriminator"
ACCURACY = "discriminator_accuracy"  # as the metrics have it
LOSSES = ("hinge", "softplus", "relativistic")
R1_STEP = 0.01


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator of a method, mixed into its settings; the method's own __post_init__ calls this one."""

    gan_loss: str = option("hinge", "form of the adversarial loss", choices=LOSSES)
    heads: str = option("conv", "heads of the discriminator", choices=KINDS)
    head_width: int = option(64, "width of the heads")
    head_condition: bool = option(True, "let the heads see the caption")
    discriminator_rate: float = option(1.0, "learning rate of the discriminator, relative to the student's")
    r1_weight: float = option(0.0, "weight of the gradient penalty at the noised real input; 0: no penalty")
    r1_form: str = option(
        "finite",
        "gradient penalty by finite difference, or exact (without fused kernels)",
        choices=("finite", "exact"),
    )

    def __post_init__(self) -> None:
        above_zero(self, "discriminator_rate")
        at_least(self, 1, "head_width")
        at_least(self, 0.0, "r1_weight")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(AdversarialConfig):
    """With times of its own, at which the discriminator looks."""

    judge_time_mean: float = option(-0.6 + math.log(2.0), "mean of log(sigma / alpha) of the discriminator's times")
    judge_time_std: float = option(1.0, "standard deviation of log(sigma / alpha) of the discriminator's times")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "judge_time_std")


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss of each row, `[B]`, a mean over its logits, both `[B, K]`."""
    match kind:
        case "hinge":
            loss = functional.relu(1.0 - real) + functional.relu(1.0 + fake)
        case "softplus":
            loss = functional.softplus(-real) + functional.softplus(fake)
        case "relativistic":
            loss = functional.softplus(fake - real)
        case _:
            raise ValueError(f"unknown adversarial loss {kind!r}; one of {', '.join(LOSSES)}")
    return loss.mean(1)


class Verdict(NamedTuple):
    """The discriminator's loss of each row, and the share of its logits that are right, both `[B]`."""

    loss: Tensor
    accuracy: Tensor


@torch.no_grad()
def accuracy(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return the share of logits, both `[B, K]`, that are right, `[B]`: the sign of each, or relativistic of a pair."""
    if kind == "relativistic":
        return (real > fake).float().mean(1)
    return 0.5 * ((real > 0.0).float() + (fake < 0.0).float()).mean(1)


def generator_loss(kind: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the generator's loss of each row, `[B]`; `real` logits matter to the relativistic form alone."""
    match kind:
        case "hinge":
            return -fake.mean(1)
        case "softplus":
            return functional.softplus(-fake).mean(1)
        case "relativistic":
            assert real is not None
            return functional.softplus(real - fake).mean(1)
    raise ValueError(f"unknown adversarial loss {kind!r}; one of {', '.join(LOSSES)}")


def gradient_penalty(logits: Callable[[Tensor], Tensor], x: Tensor, form: str, noise: Tensor) -> Tensor:
    """Return |grad|^2 of the mean logit by x, `[B]`, differentiable by the discriminator's weights.

    logits: from x to `[B, K]`. `noise`, unit and shaped as x, is the direction of the finite difference.
    """
    if form == "finite":
        apart = (logits(x + R1_STEP * noise) - logits(x)).mean(1)
        return (apart / R1_STEP).square()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the one form of softmax attention that has a second derivative
        (slope,) = torch.autograd.grad(logits(x).mean(1).sum(), x, create_graph=True)
        return slope.square().flatten(1).sum(1)


def discriminator_rows(
    config: AdversarialConfig,
    judged: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    direction: Tensor,
    *,
    misaligned: Tensor | None = None,
    penalised: Callable[[Tensor], Tensor] | None = None,
) -> Verdict:
    """Return the discriminator's loss of each row with its gradient penalty at the real input, and its accuracy.

    judged: from an input to logits `[B, K]`, and `penalised` the one whose gradient is held (None: the same);
    misaligned: inputs that make up half of the fakes.
    """
    of_real, of_fake = judged(real), judged(fake)
    loss = discriminator_loss(config.gan_loss, of_real, of_fake)
    if misaligned is not None:
        loss = 0.5 * (loss + discriminator_loss(config.gan_loss, of_real, judged(misaligned)))
    if config.r1_weight > 0.0:
        found = gradient_penalty(penalised or judged, real, config.r1_form, direction)
        loss = loss + 0.5 * config.r1_weight * found
    return Verdict(loss, accuracy(config.gan_loss, of_real, of_fake))


def generator_rows(config: AdversarialConfig, judged: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Return the adversarial loss of each generated row, `[B]`; the real ones matter to the relativistic form."""
    of_real: Tensor | None = None
    if config.gan_loss == "relativistic":
        with torch.no_grad():
            of_real = judged(real)
    return generator_loss(config.gan_loss, judged(fake), of_real)


def pooled(condition: Condition) -> Tensor:
    """Return the mean of the real tokens, float32 `[B, D]`, at a root mean square of 1."""
    mask = condition.mask[:, :, None].float()
    mean = (condition.tokens.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)
    return mean * torch.rsqrt(mean.square().mean(1, keepdim=True) + 1e-6)


class FeatureJudge:
    """A discriminator that sees latents through the features of a network of the teacher's class, at flow time t."""

    def __init__(self, view: FlowView, config: AdversarialConfig) -> None:
        self.view, self.config = view, config

    def spec(self) -> NetworkSpec:
        """Return the network to train."""
        return NetworkSpec(name=DISCRIMINATOR, learning_rate_scale=self.config.discriminator_rate, lora=False)

    def build(self) -> nn.Module:
        """Return heads that fit the teacher's feature layers."""
        teacher = self.view.teacher
        # what is loaded on the way must not draw from the numbers that the heads start from
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            null = teacher.null_condition()
            x = torch.zeros(1, *teacher.latent_shape(), device=teacher.device)
            t = torch.full((1,), 0.5, dtype=torch.float64, device=teacher.device)
            channels = [value.shape[1] for value in self.view.features(teacher.network(), x, t, null)]
        width = null.tokens.shape[2] if self.config.head_condition else None
        heads = Discriminator(channels, self.config.heads, width=self.config.head_width, condition_width=width)
        return heads.to(teacher.device)

    def logits(
        self,
        heads: nn.Module,
        network: nn.Module,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        *,
        network_gradient: float = 1.0,
    ) -> Tensor:
        """Return logits `[B, K]` of noisy latents on the flow path, differentiable by them.

        `network_gradient` scales the gradient that `network`, and what is behind it, gets.
        """
        features = self.view.features(network, x_t, t, condition)
        if not torch.is_autocast_enabled(x_t.device.type):  # a teacher in half precision, beside float32 heads
            dtype = next(heads.parameters()).dtype
            features = [value.to(dtype) for value in features]
        if network_gradient != 1.0:
            features = [value.detach() + network_gradient * (value - value.detach()) for value in features]
        found: Tensor = heads(features, pooled(condition) if self.config.head_condition else None)
        return found

    def discriminator_loss(
        self,
        heads: nn.Module,
        network: nn.Module,
        real_t: Tensor,
        fake_t: Tensor,
        t: Tensor,
        condition: Condition,
        direction: Tensor,
        *,
        misaligned: Tensor | None = None,
        network_gradient: float = 1.0,
    ) -> Verdict:
        """Return the discriminator's loss of each row with its gradient penalty at the noised real latents.

        direction: unit noise, shaped as the latents, along which a finite difference is taken. misaligned: noised real
        latents of other captions, which make up half of the fakes.
        """

        def judged(x_t: Tensor) -> Tensor:
            return self.logits(heads, network, x_t, t, condition, network_gradient=network_gradient)

        def whole(x_t: Tensor) -> Tensor:  # a penalty on the gradient must see all of it
            return self.logits(heads, network, x_t, t, condition)

        return discriminator_rows(
            self.config, judged, real_t, fake_t, direction, misaligned=misaligned, penalised=whole
        )

    def generator_loss(
        self, heads: nn.Module, network: nn.Module, real_t: Tensor, fake_t: Tensor, t: Tensor, condition: Condition
    ) -> Tensor:
        """Return the adversarial loss of each generated row, `[B]`; the real ones matter to the relativistic form."""
        return generator_rows(self.config, lambda x_t: self.logits(heads, network, x_t, t, condition), real_t, fake_t)
