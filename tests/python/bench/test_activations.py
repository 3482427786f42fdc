"""What a forward pass keeps, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddx.bench.case import Size

with pytest.MonkeyPatch.context() as patch:  # not for good: benchmarks/ has modules with names of packages
    patch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    from _activations import activation_bytes, block_activations, fake_tensors, saved_for_backward

TINY = Size(batch=2, side=4, heads=3, cross_heads=2, cross_head_dim=48, text_tokens=7)


def test_two_linears_and_a_relu() -> None:
    """The input of each linear is kept; the ReLU's output is the second's input, and counts once."""
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(5, 8)
    kept = saved_for_backward(lambda: network(x), apart_from=network.parameters())
    assert sorted(entry.shape for entry in kept.saved) == [(5, 8), (5, 32)]
    assert kept.total_bytes == 4 * 5 * (8 + 32)
    frozen = network.requires_grad_(False)
    x.requires_grad_()
    assert saved_for_backward(lambda: frozen(x), apart_from=frozen.parameters()).total_bytes == 4 * 5 * 32


def test_views_of_one_memory_count_once_and_whole() -> None:
    packed = torch.randn(6, 10, requires_grad=True)

    def forward() -> Tensor:
        left, right = (packed * 1.0).chunk(2, dim=1)
        return left * right

    assert saved_for_backward(forward).total_bytes == 4 * 6 * 10


def test_fake_tensors_count_as_real_ones() -> None:
    def count() -> int:
        network = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.LayerNorm(32))
        x = torch.randn(5, 8, requires_grad=True)
        return saved_for_backward(lambda: network(x), apart_from=network.parameters()).total_bytes

    real = count()
    with fake_tensors(torch.float32):
        assert count() == real
    assert torch.get_default_dtype() == torch.float32


def block_by_hand(size: Size) -> int:
    """Bytes that diffusers' block keeps in bfloat16, in the order of its forward pass."""
    x = 2 * size.batch * size.tokens * size.width  # one activation
    text = 2 * size.batch * size.text_tokens * size.width
    rows = size.batch * size.tokens
    image_heads, text_heads = size.batch * size.heads, size.batch * size.cross_heads
    norm = 2 * (2 * rows)  # mean and rho, of the input's dtype on a CPU
    row_vector = 2 * size.batch * size.width
    attention = (
        x  # input of q, k and v
        + 2 * x  # q and k behind their ReLU
        + 3 * 2 * x  # in float32: k, v with its row of ones, q
        + 4 * image_heads * size.tokens  # that row of ones
        + 4 * image_heads * 33 * 32  # scores
        + 4 * image_heads * 33 * size.tokens  # numerator and denominator, in one memory
        + 4 * image_heads * size.tokens  # denominator + 1e-15
        + x  # input of the output projection
    )
    cross = (
        x  # input of q
        + x  # q
        + 2 * text  # k and v
        + 2 * text_heads * size.text_tokens  # the mask, for each head
        + 4 * text_heads * size.tokens  # log of the sum of exponentials
        + x  # output, which the projection takes as it is
    )
    hidden = 2 * size.mlp_ratio * x  # both halves
    feed_forward = x + 3 * hidden + 2 * hidden / 2  # input; in, SiLU, convolved; SiLU of the gate, product
    return int(
        (x + norm + row_vector + x)  # norm1: input, statistics, 1 + scale, output
        + attention
        + (x + 6 * row_vector)  # gate: the projection's output; all six rows of the modulation, in one memory
        + cross
        + (x + norm + row_vector + x)  # norm2
        + feed_forward
        + x  # gate: the feed-forward's output
    )


@pytest.mark.parametrize("size", [replace(TINY, side=6, text_tokens=11), Size(side=32)], ids=str)
def test_a_sana_block_is_as_counted_by_hand(size: Size) -> None:
    assert block_activations(size).total_bytes == block_by_hand(size)


def test_a_frozen_block_keeps_less_and_another_block_is_counted_instead() -> None:
    stock = block_activations(TINY).total_bytes
    assert block_activations(TINY, trained=False).total_bytes < stock

    def without_feed_forward(model: Any) -> None:
        model.transformer_blocks[0].ff = nn.Identity()

    less = block_activations(TINY, prepare=without_feed_forward).total_bytes
    assert less < stock - 10 * activation_bytes(TINY)


def test_operations_take_their_kernels_path() -> None:
    from ddx.kernels.rms_norm import rms_norm

    with fake_tensors(torch.float32):
        x = torch.randn(6, 64, requires_grad=True)
        kept = saved_for_backward(lambda: rms_norm(x))
    assert sorted(entry.shape for entry in kept.saved) == [(6,), (6, 64)]  # rho and x, and no intermediate result
