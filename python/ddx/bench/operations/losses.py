"""The losses on latents with their gradients, each beside a few lines of plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddx.bench.case import Case, Size, randn
from ddx.kernels.consistency import consistency_loss
from ddx.kernels.dmd import dmd_loss
from ddx.kernels.scm_tangent import scm_loss
from ddx.kernels.sid import sid_loss


def cases(size: Size) -> list[Case]:
    """Return each of them, forward and backward at once."""
    shape = (size.batch, size.latent_channels, size.side, size.side)
    elements = torch.Size(shape).numel()

    def case(operation: str, make: Callable[..., dict[str, Tensor]], moved: int, **options: Any) -> Case:
        inputs = functools.partial(make, shape)
        return Case(operation=operation, mode="backward", make=inputs, moved_elements=moved * elements, **options)

    consistency = {"ours": consistency_loss, "stock": stock_consistency, "varied": ("prediction",)}
    sid = {"ours": sid_loss, "stock": stock_sid, "varied": ("y_teacher", "y_fake", "x")}
    scm = {
        "ours": functools.partial(scm_loss, warmup=1.0),
        "stock": stock_scm_tangent,
        "varied": ("output", "log_weight"),
    }
    return [
        case("consistency", _pair, 3, **consistency),
        case("dmd", _scores, 4, ours=dmd_loss, stock=stock_dmd),
        case("scm_tangent", _tangents, 6, **scm),
        case("sid", _scores, 6, **sid),
    ]


def _pair(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    prediction, noise = randn(generator, 2, *shape)
    weight = torch.rand(shape[0], generator=generator, device=generator.device) + 0.1
    return {"prediction": prediction, "target": prediction + 0.3 * noise, "weight": weight}


def _scores(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    x, teacher, fake = randn(generator, 3, *shape)
    return {"y_teacher": x + 0.3 * teacher, "y_fake": x + 0.3 * fake, "x": x}


def _tangents(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    output, target, tangent, jvp, x_t = randn(generator, 5, *shape)
    t, log_weight = torch.rand(2, shape[0], generator=generator, device=generator.device)
    return {
        "output": output,
        "target_output": output + 0.1 * target,
        "teacher_tangent": 0.5 * tangent,
        "jvp": jvp,
        "x_t": 0.5 * x_t,
        "t": 0.1 + (math.pi / 2 - 0.2) * t.double(),
        "log_weight": log_weight,
    }


def stock_consistency(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The weighted Huber loss of each row, `[B]`."""
    squared = (prediction.float() - target.float()).square()
    return weight.float() * (torch.sqrt(squared + 0.001**2) - 0.001).mean(dim=(1, 2, 3))


def stock_dmd(y_teacher: Tensor, y_fake: Tensor, x: Tensor) -> Tensor:
    """DMD's loss of each row, `[B]`."""
    with torch.no_grad():
        weight = (x.float() - y_teacher.float()).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
        target = x.float() - (y_fake.float() - y_teacher.float()) / weight
    return 0.5 * (x.float() - target).square().sum(dim=(1, 2, 3))


def stock_sid(y_teacher: Tensor, y_fake: Tensor, x: Tensor) -> Tensor:
    """SiD's loss of each row, `[B]`."""
    y_teacher, y_fake, x = y_teacher.float(), y_fake.float(), x.float()
    with torch.no_grad():
        weight = (x - y_teacher).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
    difference = y_teacher - y_fake
    return (difference * (y_teacher - x - difference) / weight).sum(dim=(1, 2, 3))


def stock_scm_tangent(
    output: Tensor,
    target_output: Tensor,
    teacher_tangent: Tensor,
    jvp: Tensor,
    x_t: Tensor,
    t: Tensor,
    log_weight: Tensor,
) -> Tensor:
    """The loss of sCM with its normalised tangent, of each row, `[B]`."""
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
