"""What score distillation of a guided teacher ends in.

Guided scores of different times belong to no one density, so no formula and no ODE says where a method that follows
them ends. Its own objective does: here it is minimised by a generator that is a mixture of free Gaussian modes, whose
score, which a fake score would have to learn, is known. The loss is the method's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddx.bench.mixtures.gate import Modes
from ddx.bench.mixtures.mixture import Mixture
from ddx.bench.mixtures.networks import Formula
from ddx.methods.base import Batch
from ddx.methods.parts.fake_guidance import FakeGuidance
from ddx.methods.parts.score_distillation import ScoreDistillation
from ddx.methods.sid_lsg import SiDLSG


class FreeModes(Formula):
    """Equally likely modes with a mean `[D]` and a covariance ``F F^T`` `[D, D]` each, float64, which can be trained.

    As a network it is the denoiser of what it draws.
    """

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        dimensions = mixture.means.shape[1]
        self.mixture = mixture
        self.means = nn.Parameter(mixture.means.clone())
        self.factors = nn.Parameter(mixture.std * torch.eye(dimensions).double().repeat(len(mixture.means), 1, 1))

    @property
    def covariances(self) -> Tensor:
        """`[M, D, D]`."""
        return self.factors @ self.factors.mT

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """See :meth:`Formula.x0`."""
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        own = self.covariances
        noisy = alpha.square() * own + sigma.square() * torch.eye(x.shape[1]).double()  # [B, M, D, D]
        apart = (x.double()[:, None] - alpha[..., 0] * self.means)[..., None]  # [B, M, D, 1]
        solved = torch.linalg.solve(noisy, apart)
        logits = self.mixture.weights(classes).log() - 0.5 * (
            torch.logdet(noisy) + (apart.mT @ solved).squeeze(-1).squeeze(-1)
        )
        clean: Tensor = self.means + (alpha * own @ solved)[..., 0]
        return (torch.softmax(logits, dim=1)[..., None] * clean).sum(1)

    def modes(self) -> Modes:
        """Return the modes as a gate wants them."""
        stds = self.covariances.diagonal(dim1=1, dim2=2).mean(1).sqrt()
        return Modes(self.means.detach(), stds.detach(), torch.full_like(stds, 1 / len(stds)).detach())


class Drawing(Formula):
    """The generator: its picture is a draw of the modes, whatever noise it is given."""

    def __init__(self, modes: FreeModes, seed: int) -> None:
        super().__init__()
        self.modes, self.generator = modes, torch.Generator().manual_seed(seed)

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        """Return draws, differentiable by the modes."""
        mode = torch.multinomial(self.modes.mixture.weights(classes), 1, generator=self.generator)[:, 0]
        noise = torch.randn(x.shape, generator=self.generator, dtype=torch.float64)
        return self.modes.means[mode] + (self.modes.factors[mode] @ noise[..., None])[..., 0]


def score_optimum(
    method: ScoreDistillation, make_batch: Callable[[int], Batch], mixture: Mixture, *, steps: int = 1000
) -> Modes:
    """Return the modes in which the generator's loss of `method` ends, on the batches of `make_batch(step)`.

    What a method has beside its scores, a discriminator or a regression, is left out.
    """
    if isinstance(method, FakeGuidance):  # its fake score is known as it looks at the guidance of its training
        method = SiDLSG(replace(method.config, kappa2=1.0), method.teacher)
    modes = FreeModes(mixture)
    generator, fake = Drawing(modes, seed=0), copy.deepcopy(modes).requires_grad_(False)
    optimizer = torch.optim.Adam(modes.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = make_batch(step)
        guidance = method.draw_guidance(batch)
        fake.load_state_dict(modes.state_dict())
        made = method.generate(generator, batch, guidance)
        loss, _ = method.generator_loss(made.x, method.look(made.x, batch, fake, guidance, made.time), batch)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    return modes.modes()
