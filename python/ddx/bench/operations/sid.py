"""SiD's loss and its three gradients on latents, beside a few lines of plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.bench.case import Case, Size
from ddx.kernels.sid import sid_loss


def cases(size: Size) -> list[Case]:
    """Return the loss with its gradients."""
    shape = (size.batch, size.latent_channels, size.side, size.side)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x, teacher, fake = torch.randn(3, *shape, generator=generator, device=generator.device)
        return {"y_teacher": x + 0.3 * teacher, "y_fake": x + 0.3 * fake, "x": x}

    def stock(y_teacher: Tensor, y_fake: Tensor, x: Tensor) -> Tensor:
        y_teacher, y_fake, x = y_teacher.float(), y_fake.float(), x.float()
        with torch.no_grad():
            weight = (x - y_teacher).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
        difference = y_teacher - y_fake
        return (difference * (y_teacher - x - difference) / weight).sum(dim=(1, 2, 3))

    elements = torch.Size(shape).numel()
    return [
        Case(
            operation="sid",
            mode="backward",
            make=make,
            ours=sid_loss,
            stock=stock,
            varied=("y_teacher", "y_fake", "x"),
            moved_elements=6 * elements,
        )
    ]
