"""ReLU linear attention between its projections, without and with QK norm, beside diffusers' processor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.bench.case import Case, Mode, Size, randn
from ddx.kernels.relu_linear_attention import relu_linear_attention
from ddx.kernels.relu_linear_attention_dual import relu_linear_attention_dual


def cases(size: Size) -> list[Case]:
    """Return forward, backward and dual, without a norm and with."""
    return [
        *_cases("relu_linear_attention", size, norm=False),
        *_cases("relu_linear_attention qk-norm", size, norm=True),
    ]


def _cases(operation: str, size: Size, *, norm: bool) -> list[Case]:
    shape = (size.batch, size.tokens, 3, size.heads, 32)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        found = {"qkv": randn(generator, *shape)}
        for name in ("q_weight", "k_weight") if norm else ():
            found[name] = 1 + 0.1 * randn(generator, size.width)
        return found

    def make_dual(generator: torch.Generator) -> dict[str, Tensor]:
        return {**make(generator), "dqkv": randn(generator, *shape)}

    def stock(qkv: Tensor, q_weight: Tensor | None = None, k_weight: Tensor | None = None) -> Tensor:
        query, key, value = qkv.flatten(3).unbind(2)  # [B, N, D] each, as three projections give them
        if q_weight is not None and k_weight is not None:
            query, key = _rms_norm(query, q_weight), _rms_norm(key, k_weight)
        query = F.relu(query.transpose(1, 2).unflatten(1, (size.heads, -1)))
        key = F.relu(key.transpose(1, 2).unflatten(1, (size.heads, -1)).transpose(2, 3))
        value = value.transpose(1, 2).unflatten(1, (size.heads, -1))
        wide = torch.promote_types(qkv.dtype, torch.float32)
        query, key, value = query.to(wide), key.to(wide), value.to(wide)
        value = F.pad(value, (0, 0, 0, 1), mode="constant", value=1.0)
        summed = torch.matmul(torch.matmul(value, key), query)
        output = summed[:, :, :-1] / (summed[:, :, -1:] + 1e-15)
        heads: Tensor = output.flatten(1, 2).transpose(1, 2).to(qkv.dtype).unflatten(-1, (size.heads, -1))
        return heads

    def case(mode: Mode, passes: int, statistics: int) -> Case:
        moved = (passes + statistics * norm) * size.activation
        varied = ("qkv",) if mode == "dual" or not norm else ("qkv", "q_weight", "k_weight")
        options: dict[str, Any] = {"stock": stock, "moved_elements": moved, "varied": varied}
        ours = relu_linear_attention_dual if mode == "dual" else relu_linear_attention
        return Case(operation=operation, mode=mode, make=make_dual if mode == "dual" else make, ours=ours, **options)

    return [case("forward", 4, 2), case("backward", 7, 6), case("dual", 8, 4)]


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    y = x * torch.rsqrt(x.to(torch.promote_types(x.dtype, torch.float32)).pow(2).mean(-1, keepdim=True) + 1e-5)
    return y.to(weight.dtype) * weight
