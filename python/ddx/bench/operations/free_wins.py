"""What needs no kernel: fewer, larger and plainer calls of torch, each beside the form in which diffusers makes it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.bench.case import Case, Mode, Size, randn


def cases(size: Size) -> list[Case]:
    """Return each of them forward, those with weights backward too."""
    return [*_qkv(size), *_pointwise(size), _key_mask(size), _division(size)]


def _qkv(size: Size) -> list[Case]:
    """Queries, keys and values by one product with the joined weight, in place of three."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        weights = {name: _weight(generator, size.width, size.width) for name in ("wq", "wk", "wv")}
        return {"x": randn(generator, size.batch, size.tokens, size.width), **weights}

    def ours(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
        return F.linear(x, torch.cat([wq, wk, wv]))

    def stock(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
        return torch.cat([F.linear(x, wq), F.linear(x, wk), F.linear(x, wv)], dim=-1)

    return _both("qkv in one product", make, ours, stock, ("x", "wq", "wk", "wv"), 4 * size.activation)


def _pointwise(size: Size) -> list[Case]:
    """A convolution of one pixel as a linear layer on channels that are last in memory already."""
    hidden = int(2 * size.mlp_ratio * size.width)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        tokens = randn(generator, size.batch, size.tokens, size.width)
        return {"x": tokens, "weight": _weight(generator, hidden, size.width)}

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        pictures = x.unflatten(1, (size.side, size.side)).permute(0, 3, 1, 2)
        return F.conv2d(pictures, weight[:, :, None, None]).flatten(2, 3).permute(0, 2, 1)

    moved = size.activation + size.activation // size.width * hidden
    return _both("1x1 convolution as linear", make, ours, stock, ("x", "weight"), moved)


def _key_mask(size: Size) -> Case:
    """The text mask broadcast over heads and queries, in place of a bias repeated for every head."""
    shape = (size.batch, size.cross_heads, size.tokens, size.cross_head_dim)
    text = (size.batch, size.cross_heads, size.text_tokens, size.cross_head_dim)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        bias = torch.where(randn(generator, size.batch, 1, size.text_tokens) > 1.0, -10000.0, 0.0)
        return {
            "q": randn(generator, *shape), "k": randn(generator, *text), "v": randn(generator, *text), "bias": bias
        }  # fmt: skip

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None])

    def stock(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        repeated = bias.repeat_interleave(size.cross_heads, dim=0).view(
            size.batch, size.cross_heads, -1, bias.shape[-1]
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=repeated)

    moved = 2 * size.activation + 2 * size.batch * size.text_tokens * size.width
    return Case(
        operation="key mask, broadcast", mode="forward", make=make, ours=ours, stock=stock, moved_elements=moved
    )


def _division(size: Size) -> Case:
    """No division where the divisor is one: a whole pass over an activation."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": randn(generator, size.batch, size.tokens, size.width)}

    return Case(
        operation="no division by one",
        mode="forward",
        make=make,
        ours=lambda x: x,
        stock=lambda x: x / 1.0,
        moved_elements=0,
    )


def _both(
    operation: str,
    make: Callable[[torch.Generator], dict[str, Tensor]],
    ours: Callable[..., Tensor],
    stock: Callable[..., Tensor],
    varied: tuple[str, ...],
    moved: int,
) -> list[Case]:
    modes: tuple[Mode, ...] = ("forward", "backward")
    return [
        Case(
            operation=operation, mode=mode, make=make, ours=ours, stock=stock, varied=varied,
            moved_elements=moved if mode == "forward" else 2 * moved,
        )
        for mode in modes
    ]  # fmt: skip


def _weight(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return randn(generator, rows, columns) / math.sqrt(columns)
