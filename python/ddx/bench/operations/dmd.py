"""DMD's loss and its gradient on latents, beside a few lines of plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.bench.case import Case, Size
from ddx.kernels.dmd import dmd_loss


def cases(size: Size) -> list[Case]:
    """Return the loss with its gradient."""
    shape = (size.batch, size.latent_channels, size.side, size.side)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x, teacher, fake = torch.randn(3, *shape, generator=generator, device=generator.device)
        return {"y_teacher": x + 0.3 * teacher, "y_fake": x + 0.3 * fake, "x": x}

    def stock(y_teacher: Tensor, y_fake: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight = (x.float() - y_teacher.float()).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
            target = x.float() - (y_fake.float() - y_teacher.float()) / weight
        return 0.5 * (x.float() - target).square().sum(dim=(1, 2, 3))

    elements = torch.Size(shape).numel()
    return [
        Case(operation="dmd", mode="backward", make=make, ours=dmd_loss, stock=stock, moved_elements=4 * elements),
    ]
