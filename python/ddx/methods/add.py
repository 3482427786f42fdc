"""ADD: adversarial diffusion distillation (Sauer et al. 2023, arXiv:2311.17042).

    x_s = (1 - s) x0 + s eps,  x = x_s - s v_theta(x_s, s)             s: a time of the sampler
    student  G(D(decode(x))) + weight (1 - t) |x - y_phi(x_t, t)|^2    y_phi: the guided teacher's x0, a constant
    D        heads on the features of a frozen image backbone, of decode(x0) and decode(stopgrad(x))

Gradients flow through the decoder. Both sides are decoded, so that D does not learn to tell the decoder. The paper's
backbone is a DINO ViT-S; without `backbone` it is the encoder of the teacher's own autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.adversarial import ACCURACY, DISCRIMINATOR, discriminator_rows, generator_rows, pooled
from ddx.methods.parts.adversarial_student import AdversarialStudent, AdversarialStudentConfig
from ddx.methods.parts.config import at_least, changed
from ddx.methods.parts.flow_view import clean, mean_square
from ddx.networks.backbones import Backbone, EncoderBackbone, load_backbone
from ddx.networks.heads import Discriminator


@dataclass(frozen=True, kw_only=True)
class ADDConfig(AdversarialStudentConfig):
    """The published form. The drawn times are those at which the teacher looks at the student's latents."""

    backbone: str | None = option(
        None,
        "vision model of transformers for the discriminator's features, such as facebook/dino-vits16 (none: the "
        "encoder of the teacher's autoencoder)",
        metavar="PATH|ID",
    )
    regression_weight: float = option(2.5, "weight of the regression on the teacher's view of the student's latents")
    time_sampling: str = changed(AdversarialStudentConfig, "time_sampling", "uniform")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0.0, "regression_weight")


class ADD(AdversarialStudent):
    """Adversarial diffusion distillation, judged in pixels."""

    config: ADDConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "adam_beta1": 0.0, "adam_beta2": 0.99}
    _backbone: Backbone | None = None

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the heads on the backbone's features."""
        rate = self.config.discriminator_rate
        return NetworkSpec(name=STUDENT), NetworkSpec(name=DISCRIMINATOR, learning_rate_scale=rate, lora=False)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """See :meth:`Method.build`. DdxError where the backbone is not to be had."""
        if spec.name != DISCRIMINATOR:
            return super().build(spec)
        config, device = self.config, self.teacher.device
        # what is loaded on the way must not draw from the numbers that the heads start from
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            pixels = self.teacher.decode_pixels(torch.zeros(1, *self.teacher.latent_shape(), device=device))
            channels = [value.shape[1] for value in self.backbone(pixels)]
            width = self.teacher.null_condition().tokens.shape[2] if config.head_condition else None
        return Discriminator(channels, config.heads, width=config.head_width, condition_width=width).to(device)

    @property
    def backbone(self) -> Backbone:
        """The frozen network whose features are judged; loaded at first use."""
        if self._backbone is None:
            name = self.config.backbone
            encoder = EncoderBackbone(self.teacher.vae()) if name is None else None
            self._backbone = encoder or load_backbone(str(name), self.teacher.device)
        return self._backbone

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the discriminator's loss; or the student's, with the regression as its second."""
        of_student = STUDENT in turn.trains
        with torch.set_grad_enabled(of_student and torch.is_grad_enabled()):
            x = self.generate(networks[STUDENT], batch)
            fake = self.teacher.decode_pixels(x)
        with torch.no_grad():
            real = self.teacher.decode_pixels(batch.x0)
        judged = self.judged(networks[DISCRIMINATOR], batch)
        if not of_student:
            direction = batch.random.normal(*real.shape[1:]) if self.config.r1_weight > 0.0 else real
            loss, right = discriminator_rows(self.config, judged, real, fake, direction)
            return Losses(by_network={DISCRIMINATOR: loss}, tracked={ACCURACY: right})
        adversarial = generator_rows(self.config, judged, real, fake)
        regression = self.regression(x, batch)
        return Losses(
            by_network={STUDENT: adversarial},
            secondary={STUDENT: self.config.regression_weight * regression},
            tracked={"regression": regression},
            generated=x,
        )

    def judged(self, heads: nn.Module, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return the function from pixels to logits `[B, K]` for the captions of the batch."""
        condition = pooled(batch.condition) if self.config.head_condition else None

        def logits(pixels: Tensor) -> Tensor:
            found: Tensor = heads(self.backbone(pixels), condition)
            return found

        return logits

    def regression(self, x: Tensor, batch: Batch) -> Tensor:
        """Return ``(1 - t) |x - y_phi|^2`` of each row, `[B]`, a mean over its elements."""
        times, noise = self.draw_times(batch), self.draw_noise(batch)
        with torch.no_grad():
            x_t = self.noisy(x, noise, times.t)
            velocity = self.teacher_velocity(x_t, times.t, batch, self.guidance_min)
            seen = clean(x_t, times.t, velocity)
        return times.weigh((1.0 - times.t).float() * mean_square(x - seen))
