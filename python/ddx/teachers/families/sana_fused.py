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
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddx.kernels import dispatch

if TYPE_CHECKING:
    from ddx.kernels.cross_attention import Text

MODEL = "SanaTransformer2DModel"


def fuse_if_faster(network: nn.Module) -> nn.Module:
    """Put the kernels into a SANA transformer whose device runs Triton; any other network is left as it is."""
    device = next(network.parameters(), torch.empty(0)).device
    if _is_sana(network) and dispatch.backend(device.type) == "triton":
        fuse(network)
    return network


def fuse(network: nn.Module) -> None:
    """Put the kernels into a ``SanaTransformer2DModel``, in place; a second call changes nothing.

    An attention that has a processor other than diffusers' default keeps it. Raises TypeError for another network.
    """
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    from ddx.kernels.cross_attention import CrossAttentionProcessor, Text
    from ddx.kernels.glumbconv import glumbconv_forward
    from ddx.kernels.linear_attention import ReluLinearAttentionProcessor
    from ddx.kernels.sana_block import sana_block_forward

    text = text_of(network) or Text()  # all of its attentions share one
    for block in _blocks(network):
        if type(block.attn1.processor) is SanaLinearAttnProcessor2_0:
            block.attn1.set_processor(ReluLinearAttentionProcessor())
        if block.attn2 is not None and type(block.attn2.processor) is SanaAttnProcessor2_0:
            block.attn2.set_processor(CrossAttentionProcessor(text))
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
    return _is_sana(network) and any("forward" in block.__dict__ for block in _blocks(network))


def text_of(network: nn.Module) -> Text | None:
    """What the cross-attentions of a network with kernels know of its text; None of any other network."""
    network = getattr(network, "module", network)
    if not _is_sana(network):
        return None
    found = (getattr(block.attn2.processor, "text", None) for block in _blocks(network) if block.attn2 is not None)
    return next((text for text in found if text is not None), None)


@contextmanager
def alone(network: nn.Module, num_rows: int) -> Iterator[None]:
    """Within, the first rows of each pass have a text of one token, the first, whatever their mask says.

    Of no use to a network without kernels. Nor to passes with gradients that compute blocks again in the backward pass,
    which is after the `with` block.
    """
    text = text_of(network)
    again = torch.is_grad_enabled() and getattr(getattr(network, "module", network), "gradient_checkpointing", False)
    if text is None or again:
        yield
        return
    text.alone = num_rows
    try:
        yield
    finally:
        text.alone = 0


@contextmanager
def kept_text(network: nn.Module) -> Iterator[None]:
    """Within, all passes of a shape have the same text: keys and values are computed once, where no gradients are."""
    text = text_of(network)
    if text is None or text.kept is not None:  # the outer block keeps them
        yield
        return
    text.kept = {}
    try:
        yield
    finally:
        text.kept = None


def _is_sana(network: nn.Module) -> bool:
    """Whether it is one, also with its weights spread over processes, which makes a class of its own."""
    return any(kind.__name__ == MODEL for kind in type(network).__mro__)


def _blocks(network: nn.Module) -> Iterator[Any]:
    if not _is_sana(network):
        raise TypeError(f"the kernels are for {MODEL}, not for {type(network).__name__}")
    return iter(network.get_submodule("transformer_blocks").children())
