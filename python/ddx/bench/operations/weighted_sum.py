"""One guided Euler step as a sum of three latents with coefficients by sample, beside plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddx.bench.case import Case, Size
from ddx.kernels.weighted_sum import weighted_sum


def cases(size: Size) -> list[Case]:
    """Return forward and backward; the guidance and the step are drawn by sample."""
    shape = (size.batch, size.latent_channels, size.side, size.side)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        x_t, null, cond = torch.randn(3, *shape, generator=generator, device=generator.device)
        cfg, step = torch.rand(2, size.batch, generator=generator, device=generator.device).double()
        return {"x_t": x_t, "null": null, "cond": cond, "cfg": 4 + 2 * cfg, "step": -0.02 * (1 + step)}

    def ours(x_t: Tensor, null: Tensor, cond: Tensor, cfg: Tensor, step: Tensor) -> Tensor:
        return weighted_sum([x_t, null, cond], [torch.ones_like(step), (1 - cfg) * step, cfg * step])

    def stock(x_t: Tensor, null: Tensor, cond: Tensor, cfg: Tensor, step: Tensor) -> Tensor:
        scale, length = (value.to(x_t.dtype).reshape(-1, 1, 1, 1) for value in (cfg, step))
        return x_t + length * (null + scale * (cond - null))

    elements = torch.Size(shape).numel()
    shared: dict[str, Any] = {
        "operation": "weighted_sum",
        "make": make,
        "ours": ours,
        "stock": stock,
        "varied": ("x_t", "null", "cond"),
        "moved_elements": 4 * elements,
    }
    return [Case(mode="forward", **shared), Case(mode="backward", **shared)]
