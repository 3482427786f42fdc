"""Our kernels in diffusers' SANA transformer: one call puts them in, one takes them out.

    fuse(network)      attention, feed-forward and the residual stream of every block run through `ddx.kernels`
    unfuse(network)    diffusers' own code again

What is replaced are the processors of the attentions and the `forward` of blocks and feed-forwards, on the instances:
parameters, their names, state dicts, hooks on modules, gradient checkpointing and `torch.compile` are as before. Each
kernel's file says what it computes and how it is wired. They are imported where they are put in: importing Triton takes
part of a second, which a machine without a GPU need not spend.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from ddx.kernels import dispatch

MODEL = "SanaTransformer2DModel"


def fuse_if_faster(network: nn.Module) -> nn.Module:
    """Put the kernels into a SANA transformer whose device runs Triton; any other network is left as it is."""
    device = next(network.parameters(), torch.empty(0)).device
    if type(network).__name__ == MODEL and dispatch.backend(device.type) == "triton":
        fuse(network)
    return network


def fuse(network: nn.Module) -> None:
    """Put the kernels into a ``SanaTransformer2DModel``, in place; a second call changes nothing.

    An attention that has a processor other than diffusers' default keeps it. Raises TypeError for another network.
    """
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    from ddx.kernels.cross_attention import CrossAttentionProcessor
    from ddx.kernels.glumbconv import glumbconv_forward
    from ddx.kernels.linear_attention import ReluLinearAttentionProcessor
    from ddx.kernels.sana_block import sana_block_forward

    for block in _blocks(network):
        if type(block.attn1.processor) is SanaLinearAttnProcessor2_0:
            block.attn1.set_processor(ReluLinearAttentionProcessor())
        if block.attn2 is not None and type(block.attn2.processor) is SanaAttnProcessor2_0:
            block.attn2.set_processor(CrossAttentionProcessor())
        block.ff.forward = MethodType(glumbconv_forward, block.ff)
        block.forward = MethodType(sana_block_forward, block)


def unfuse(network: nn.Module) -> None:
    """Take the kernels out again, in place. Raises TypeError for another network."""
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    from ddx.kernels.cross_attention import CrossAttentionProcessor
    from ddx.kernels.linear_attention import ReluLinearAttentionProcessor

    for block in _blocks(network):
        if isinstance(block.attn1.processor, ReluLinearAttentionProcessor):
            block.attn1.set_processor(SanaLinearAttnProcessor2_0())
        if block.attn2 is not None and isinstance(block.attn2.processor, CrossAttentionProcessor):
            block.attn2.set_processor(SanaAttnProcessor2_0())
        block.ff.__dict__.pop("forward", None)
        block.__dict__.pop("forward", None)


def is_fused(network: nn.Module) -> bool:
    """Whether the kernels are in."""
    return type(network).__name__ == MODEL and any("forward" in block.__dict__ for block in _blocks(network))


def _blocks(network: nn.Module) -> Iterator[Any]:
    if type(network).__name__ != MODEL:
        raise TypeError(f"the kernels are for {MODEL}, not for {type(network).__name__}")
    return iter(network.get_submodule("transformer_blocks").children())
