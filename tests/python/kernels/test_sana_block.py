"""A SANA block with fused residuals, gates and norms is diffusers' block."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from torch import Tensor

from ddx.kernels.sana_block import sana_block_forward
from operations import assert_rounded

HEIGHT, WIDTH, TEXT = 4, 6, 5


def stock_block(dim: int, dtype: torch.dtype = torch.float32, **options: Any) -> SanaTransformerBlock:
    torch.manual_seed(0)
    block = SanaTransformerBlock(
        dim=dim,
        num_attention_heads=2,
        attention_head_dim=32,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=dim,
        **options,
    )
    return block.to(dtype)


def fused(block: SanaTransformerBlock) -> SanaTransformerBlock:
    """A copy of the block, with its forward replaced."""
    mine = copy.deepcopy(block)
    mine.forward = functools.partial(sana_block_forward, mine)
    return mine


def inputs(dim: int, dtype: torch.dtype, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=generator)
    return {
        "hidden_states": draw(batch, HEIGHT * WIDTH, dim).to(dtype),
        "encoder_hidden_states": draw(batch, TEXT, dim).to(dtype),
        "timestep": draw(batch, 6 * dim).to(dtype),
    }


def run(block: Any, given: dict[str, Tensor], *, checkpoint: bool = False) -> dict[str, Tensor]:
    """Return the output, and the gradient of each input and parameter by name."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in given.items()}
    mask = torch.zeros(len(given["timestep"]), 1, TEXT, dtype=given["encoder_hidden_states"].dtype)
    mask[0, :, -2:] = -10000.0
    arguments = (
        leaves["hidden_states"],
        None,
        leaves["encoder_hidden_states"],
        mask,
        leaves["timestep"],
        HEIGHT,
        WIDTH,
    )
    if checkpoint:
        output = torch.utils.checkpoint.checkpoint(block, *arguments, use_reentrant=False)
    else:
        output = block(*arguments)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    wanted = {name: value for name, value in {**leaves, **dict(block.named_parameters())}.items()}
    found = torch.autograd.grad(output, list(wanted.values()), cotangent, allow_unused=True)
    gradients = {name: value for name, value in zip(wanted, found, strict=True) if value is not None}
    return {"output": output.detach(), **gradients}


def without_cross_attention(block: SanaTransformerBlock) -> SanaTransformerBlock:
    block.attn2 = None
    return block


BLOCKS = {
    "plain": {},
    "normed queries": {"qk_norm": "rms_norm_across_heads"},
    "affine norm": {"norm_elementwise_affine": True},
}


@pytest.mark.parametrize(("dim", "options"), [*zip((64, 96, 64), BLOCKS.values(), strict=True)], ids=BLOCKS.keys())
def test_it_is_the_stock_block_in_float64(dim: int, options: dict[str, Any]) -> None:
    block = stock_block(dim, torch.float64, **options)
    given = inputs(dim, torch.float64)
    expected, found = run(block, given), run(fused(block), given)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("dim", "cross_attention"), [(64, True), (96, False)])
def test_it_is_the_stock_block_in_float32(path: str, dim: int, cross_attention: bool) -> None:
    block = stock_block(dim)
    block = block if cross_attention else without_cross_attention(block)
    given = inputs(dim, torch.float32, batch=1)
    exact = copy.deepcopy(block).double()
    assert_rounded(
        run(fused(block), given), lambda: run(exact, {name: value.double() for name, value in given.items()})
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(path: str, dtype: torch.dtype) -> None:
    block = stock_block(64)
    given = inputs(64, torch.float32, batch=1)
    given["encoder_hidden_states"] = given["encoder_hidden_states"].to(dtype).float()
    with torch.autocast("cpu", dtype):
        found = run(fused(block), given)
    assert {value.dtype for value in found.values()} == {torch.float32}
    exact = copy.deepcopy(block).to(dtype).double()  # the weights that products are made with
    assert_rounded(found, lambda: run(exact, {name: value.double() for name, value in given.items()}), inner=dtype)


def test_the_projections_read_the_norm_as_it_was_written(path: str) -> None:
    """Under autocast nothing is left to cast before a projection, and the residual stream stays in float32."""
    block = fused(stock_block(64))
    seen: dict[str, torch.dtype] = {}
    for name in ("attn1", "attn2", "ff"):
        module = getattr(block, name)
        module.register_forward_pre_hook(lambda _, arguments, name=name: seen.update({name: arguments[0].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        run(block, inputs(64, torch.float32, batch=1))
    assert seen == {"attn1": torch.bfloat16, "attn2": torch.float32, "ff": torch.bfloat16}


def test_with_gradient_checkpointing(path: str) -> None:
    block = fused(stock_block(64))
    given = inputs(64, torch.float32, batch=1)
    expected, found = run(block, given), run(block, given, checkpoint=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_a_frozen_block_gives_gradients_to_its_inputs(path: str) -> None:
    block = stock_block(64).requires_grad_(False)
    given = inputs(64, torch.float32, batch=1)
    hidden = [given["hidden_states"].clone().requires_grad_() for _ in range(2)]
    for each, run_block in zip(hidden, (block, fused(block)), strict=True):
        output = run_block(each, None, given["encoder_hidden_states"], None, given["timestep"], HEIGHT, WIDTH)
        output.square().sum().backward()
    torch.testing.assert_close(hidden[1].grad, hidden[0].grad)


def test_parameters_stay_where_they_were() -> None:
    block = stock_block(64)
    before, after = block.state_dict(), fused(block).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
