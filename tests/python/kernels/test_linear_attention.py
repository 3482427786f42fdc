"""The processor of SANA's linear self-attention, and its dual, against diffusers' own on the same module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0
from torch import Tensor, nn

from ddx.kernels.linear_attention import ReluLinearAttentionProcessor, linear_attention_dual_forward

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "rms": {"qk_norm": "rms_norm_across_heads", "kv_heads": 2},
    "layer": {"qk_norm": "layer_norm_across_heads", "kv_heads": 2},
}


def attention(kind: str) -> Any:
    torch.manual_seed(0)
    module = Attention(32, heads=2, dim_head=16, processor=SanaLinearAttnProcessor2_0(), **KINDS[kind])
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.4)
    return module


def tokens(seed: int = 1) -> Tensor:
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(seed))


def both(module: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of stock, then of ours."""
    found = []
    for processor in (SanaLinearAttnProcessor2_0(), ReluLinearAttentionProcessor()):
        module.set_processor(processor)
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        wanted = [leaf, *(p for p in module.parameters() if p.requires_grad)]
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        found.append([output.detach(), *torch.autograd.grad(output, wanted, cotangent)])
    return found[0], found[1]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_diffusers_does(path: str, kind: str, wrapped: bool) -> None:
    module = attention(kind)
    if wrapped:  # as a LoRA layer does, the projection gives more than its weight says
        module.to_k.register_forward_hook(lambda module, inputs, output: output + 0.3 * inputs[0])
    stock, ours = both(module, tokens())
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_dual_is_forward_mode_of_the_stock_module(path: str, kind: str) -> None:
    module, x, dx = attention(kind), tokens(), tokens(3)
    with torch.no_grad():
        stock = torch.func.jvp(module, (x,), (dx,))
        torch.testing.assert_close(linear_attention_dual_forward(module, x, dx), stock, rtol=1e-3, atol=1e-3)


def test_joined_weights_are_kept_until_one_changes() -> None:
    module, x = attention("bias").requires_grad_(False), tokens()
    processor = ReluLinearAttentionProcessor()
    module.set_processor(processor)
    module(x)
    assert processor._joined is not None
    kept = processor._joined[1]
    module(x)
    assert processor._joined[1] is kept
    with torch.no_grad():
        module.to_v.weight.mul_(2.0)
    ours = module(x)
    module.set_processor(SanaLinearAttnProcessor2_0())
    torch.testing.assert_close(ours, module(x), rtol=1e-4, atol=1e-4)
    assert not any("joined" in name for name in module.state_dict())


def test_trained_weights_are_never_kept() -> None:
    module = attention("plain")
    processor = ReluLinearAttentionProcessor()
    module.set_processor(processor)
    module(tokens()).sum().backward()
    assert processor._joined is None and module.to_q.weight.grad is not None
