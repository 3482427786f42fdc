"""The loss of sCM with its normalised tangent, and its gradients, on latents, beside a few lines of plain torch."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ddx.bench.case import Case, Size
from ddx.kernels.scm_tangent import scm_loss


def cases(size: Size) -> list[Case]:
    """Return the loss with its gradients."""
    shape = (size.batch, size.latent_channels, size.side, size.side)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        output, target, tangent, jvp, x_t = torch.randn(5, *shape, generator=generator, device=generator.device)
        t, log_weight = torch.rand(2, size.batch, generator=generator, device=generator.device)
        return {
            "output": output,
            "target_output": output + 0.1 * target,
            "teacher_tangent": 0.5 * tangent,
            "jvp": jvp,
            "x_t": 0.5 * x_t,
            "t": 0.1 + (math.pi / 2 - 0.2) * t.double(),
            "log_weight": log_weight,
        }

    def stock(
        output: Tensor,
        target_output: Tensor,
        teacher_tangent: Tensor,
        jvp: Tensor,
        x_t: Tensor,
        t: Tensor,
        log_weight: Tensor,
    ) -> Tensor:
        with torch.no_grad():
            angle = t.float().reshape(-1, 1, 1, 1)
            cos, sin = torch.cos(angle), torch.sin(angle)
            h = -cos * cos * (0.5 * target_output.float() - teacher_tangent.float())
            h = h - (cos * sin * x_t.float() + 0.5 * jvp.float())
            h = h / (torch.linalg.vector_norm(h, dim=(1, 2, 3), keepdim=True) + 0.1)
            weight = 1 / (0.5 * torch.tan(angle))
        error = (output.float() - target_output.float() - h).square()
        u = log_weight.float().reshape(-1, 1, 1, 1)
        loss: Tensor = (weight / torch.exp(u) * error + u).mean(dim=(1, 2, 3))
        return loss

    elements = torch.Size(shape).numel()
    return [
        Case(
            operation="scm_tangent",
            mode="backward",
            make=make,
            ours=functools.partial(scm_loss, warmup=1.0),
            stock=stock,
            varied=("output", "log_weight"),
            moved_elements=6 * elements,
        )
    ]
