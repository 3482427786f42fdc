"""The consistency loss, weighted, and its gradient on latents, beside a few lines of plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.bench.case import Case, Size
from ddx.kernels.consistency import consistency_loss


def cases(size: Size) -> list[Case]:
    """Return the loss with its gradient."""
    shape = (size.batch, size.latent_channels, size.side, size.side)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        prediction, noise = torch.randn(2, *shape, generator=generator, device=generator.device)
        weight = torch.rand(size.batch, generator=generator, device=generator.device) + 0.1
        return {"prediction": prediction, "target": prediction + 0.3 * noise, "weight": weight}

    def stock(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        squared = (prediction.float() - target.float()).square()
        return weight.float() * (torch.sqrt(squared + 0.001**2) - 0.001).mean(dim=(1, 2, 3))

    elements = torch.Size(shape).numel()
    return [
        Case(
            operation="consistency",
            mode="backward",
            make=make,
            ours=consistency_loss,
            stock=stock,
            varied=("prediction",),
            moved_elements=3 * elements,
        )
    ]
