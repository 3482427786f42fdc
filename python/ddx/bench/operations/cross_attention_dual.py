"""Cross-attention and its tangent in the queries, beside SDPA under func.jvp, which only its MATH backend allows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddx.bench.case import Case, Size, randn
from ddx.kernels.cross_attention_dual import cross_attention_dual


def cases(size: Size) -> list[Case]:
    """Return dual: forward and backward are torch's own."""
    heads, width = size.cross_heads, size.cross_head_dim

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        text = randn(generator, size.batch, size.text_tokens, 2, heads, width)  # as one product gives keys and values
        lengths = torch.linspace(1, size.text_tokens, size.batch, device=generator.device).long()
        return {
            "q": randn(generator, size.batch, size.tokens, heads, width),
            "dq": randn(generator, size.batch, size.tokens, heads, width),
            "k": text[:, :, 0],
            "v": text[:, :, 1],
            "mask": torch.arange(size.text_tokens, device=generator.device) < lengths[:, None],
        }

    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2)

    def stock(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return forward(q, k, v, mask)

    queries = size.batch * size.tokens * heads * width
    return [
        Case(
            operation="cross_attention_dual",
            mode="dual",
            make=make,
            ours=cross_attention_dual,
            stock=stock,
            forward=forward,
            varied=("q",),
            moved_elements=4 * queries + 2 * size.batch * size.text_tokens * heads * width,
            flops=4 * 2 * queries * size.text_tokens,
        )
    ]
