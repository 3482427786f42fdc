"""The cross-attention processor and the module's dual, against diffusers' own processor."""

from __future__ import annotations

import copy
import math
from typing import Any

import peft
import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0, SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddx.kernels.cross_attention import CrossAttentionProcessor, cross_attention_dual_forward
from operations import assert_forward_mode_is_right, assert_rounded

HEADS, HEAD_SIZE, WIDTH, TEXT_WIDTH = 3, 32, 40, 24
MASKS = ["none", "[B, 1, L] bias", "[B, 1, 1, L] booleans", "[B, L] -inf"]


def attention(
    dtype: torch.dtype, *, qk_norm: str | None = None, lora: bool = False, dropout: float = 0.0
) -> tuple[Attention, Attention]:
    """(ours, stock): two modules with the same weights, none of them at its beginning."""
    torch.manual_seed(0)
    stock = Attention(
        query_dim=WIDTH,
        cross_attention_dim=TEXT_WIDTH,
        heads=HEADS,
        kv_heads=HEADS if qk_norm else None,
        dim_head=HEAD_SIZE,
        qk_norm=qk_norm if qk_norm != "torch" else None,
        dropout=dropout,
        bias=True,
        processor=SanaAttnProcessor2_0(),
    )
    if qk_norm == "torch":  # its variance is float64 for float64, where diffusers' is float32
        stock.norm_q, stock.norm_k = (nn.RMSNorm(HEADS * HEAD_SIZE, eps=1e-5) for _ in range(2))
    if lora:
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_out.0"], init_lora_weights=False)
        stock = peft.inject_adapter_in_model(config, stock)
    for name, parameter in stock.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
        parameter.requires_grad_()
    stock = stock.to(dtype)
    ours = copy.deepcopy(stock)
    ours.set_processor(CrossAttentionProcessor())
    return ours, stock


def inputs(dtype: torch.dtype, mask: str = "none", *, tokens: int = 21, text: int = 13) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    keep = torch.arange(text) < torch.tensor([[text], [5]])
    masks = {
        "none": None,
        "[B, 1, L] bias": ((1 - keep.to(dtype)) * -10000.0)[:, None],
        "[B, 1, 1, L] booleans": keep[:, None, None],
        "[B, L] -inf": torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, -math.inf),
    }
    return {
        "hidden_states": torch.randn(2, tokens, WIDTH, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(2, text, TEXT_WIDTH, generator=generator).to(dtype),
        "attention_mask": masks[mask],
    }


def run(attn: Attention, given: dict[str, Any]) -> dict[str, Tensor]:
    """The output and the gradient of every input and parameter, by name."""
    leaves = {
        name: given[name].detach().clone().requires_grad_() for name in ("hidden_states", "encoder_hidden_states")
    }
    y = attn(**{**given, **leaves})
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    asked = {**leaves, **dict(attn.named_parameters())}
    found = torch.autograd.grad(y, list(asked.values()), cotangent)
    return {"output": y.detach(), **dict(zip(asked, found, strict=True))}


def wide(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("qk_norm", [None, "torch"])
def test_it_is_the_stock_processor_in_float64(qk_norm: str | None, mask: str) -> None:
    ours, stock = attention(torch.float64, qk_norm=qk_norm)
    given = inputs(torch.float64, mask)
    found, expected = run(ours, given), run(stock, given)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-12, atol=1e-12, msg=lambda text, of=name: f"{of}: {text}"
        )


@pytest.mark.parametrize(
    ("dtype", "qk_norm", "mask"),
    [
        (torch.float32, None, "none"),
        (torch.float32, "torch", "[B, 1, L] bias"),
        (torch.float16, "torch", "[B, 1, 1, L] booleans"),
        (torch.float16, None, "[B, L] -inf"),
        (torch.bfloat16, "torch", "none"),
        (torch.bfloat16, None, "[B, 1, L] bias"),
    ],
)
def test_outputs_and_gradients_against_float64(path: str, dtype: torch.dtype, qk_norm: str | None, mask: str) -> None:
    ours, stock = attention(dtype, qk_norm=qk_norm)
    given = inputs(dtype, mask)
    stock = stock.double()
    assert_rounded(run(ours, given), lambda: run(stock, wide(given)), inner=dtype)


@pytest.mark.parametrize("qk_norm", [None, "rms_norm_across_heads"])
def test_lora_is_called_and_trained(qk_norm: str | None) -> None:
    ours, stock = attention(torch.float64, qk_norm=qk_norm, lora=True)
    given = inputs(torch.float64, "[B, 1, L] bias")
    found, expected = run(ours, given), run(stock, given)
    assert any("lora_A" in name for name in found)
    tolerance = 1e-12 if qk_norm is None else 1e-5  # diffusers' norm takes its variance in float32
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def test_hooks_on_the_projections_are_called() -> None:
    ours, _ = attention(torch.float32)
    seen = []
    ours.to_v.register_forward_hook(lambda *_: seen.append("to_v"))
    ours(**inputs(torch.float32))
    assert seen == ["to_v"]


def num_products(attn: Attention, given: dict[str, Any]) -> int:
    with torch.profiler.profile() as profile:
        attn(**given)
    return sum(event.name == "aten::linear" for event in profile.events())


def test_keys_and_values_are_one_product_where_no_gradient_passes() -> None:
    ours, stock = attention(torch.float64)
    given = inputs(torch.float64)
    assert num_products(ours, given) == 4
    with torch.no_grad():
        assert num_products(ours, given) == 3
        torch.testing.assert_close(ours(**given), stock(**given), rtol=1e-12, atol=1e-12)
    ours, stock = ours.requires_grad_(False), stock.requires_grad_(False)  # a teacher, with a gradient to its input
    assert num_products(ours, given) == 3
    x = given["hidden_states"].requires_grad_()
    gradient, expected = (torch.autograd.grad(attn(**given).sum(), x) for attn in (ours, stock))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_without_a_text_it_is_self_attention() -> None:
    ours, stock = attention(torch.float64)
    for attn in (ours, stock):
        attn.to_k, attn.to_v = copy.deepcopy(attn.to_q), copy.deepcopy(attn.to_q)
    x = inputs(torch.float64)["hidden_states"]
    torch.testing.assert_close(ours(x), stock(x), rtol=1e-12, atol=1e-12)


def test_a_rescale_factor_divides() -> None:
    ours, stock = attention(torch.float64)
    given = inputs(torch.float64)
    ours.rescale_output_factor = stock.rescale_output_factor = 2.0
    torch.testing.assert_close(ours(**given), stock(**given), rtol=1e-12, atol=1e-12)
    dual = cross_attention_dual_forward(
        ours, given["hidden_states"], given["hidden_states"], given["encoder_hidden_states"]
    )
    torch.testing.assert_close(dual, expected_dual(stock, given, given["hidden_states"]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("qk_norm", "mask"),
    [
        (None, "none"),
        ("rms_norm_across_heads", "[B, 1, L] bias"),
        ("layer_norm_across_heads", "[B, 1, 1, L] booleans"),
        (None, "[B, L] -inf"),
    ],
)
def test_it_runs_under_autocast(qk_norm: str | None, mask: str) -> None:
    ours, stock = attention(torch.float32, qk_norm=qk_norm)
    given = inputs(torch.float32, mask)
    x, text = given["hidden_states"], given["encoder_hidden_states"]
    exact = stock(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, eager = run(ours, given), run(stock, given)
        y, dy = cross_attention_dual_forward(ours, x, x, text, given["attention_mask"])
    assert found["output"].dtype == eager["output"].dtype == y.dtype == dy.dtype == torch.bfloat16
    torch.testing.assert_close(found["output"].float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    for name, value in found.items():
        scale = eager[name].abs().max().item()
        torch.testing.assert_close(value, eager[name], rtol=0.1, atol=0.05 * scale + 1e-3, msg=lambda _, of=name: of)


def test_the_state_dict_is_unchanged() -> None:
    ours, stock = attention(torch.float32, qk_norm="rms_norm_across_heads")
    assert list(ours.state_dict()) == list(stock.state_dict())


def test_forward_mode_is_right(triton_path: None) -> None:
    ours, _ = attention(torch.float32, qk_norm="rms_norm_across_heads")
    given = inputs(torch.float32, "[B, 1, L] bias", tokens=5)
    rest = {name: value for name, value in given.items() if name != "hidden_states"}
    assert_forward_mode_is_right(lambda x: ours(x, **rest), given["hidden_states"])


def test_it_compiles_whole(triton_path: None) -> None:
    ours, _ = attention(torch.float32, qk_norm="rms_norm_across_heads")
    given = inputs(torch.float32, "[B, 1, 1, L] booleans", tokens=5)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given), ours(**given))
    dual = torch.compile(cross_attention_dual_forward, backend="aot_eager", fullgraph=True)
    arguments = (ours, given["hidden_states"], given["hidden_states"], *list(given.values())[1:])
    with torch.no_grad():
        torch.testing.assert_close(dual(*arguments), cross_attention_dual_forward(*arguments))


def expected_dual(stock: Attention, given: dict[str, Any], tangent: Tensor) -> tuple[Tensor, Tensor]:
    rest = {name: value for name, value in given.items() if name != "hidden_states"}
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(lambda x: stock(x, **rest), (given["hidden_states"],), (tangent,))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("qk_norm", "lora"), [(None, False), ("torch", False), (None, True), ("torch", True)])
def test_the_dual_is_the_forward_derivative_of_stock(mask: str, qk_norm: str | None, lora: bool) -> None:
    ours, stock = attention(torch.float64, qk_norm=qk_norm, lora=lora, dropout=0.1)
    ours, stock = ours.eval(), stock.eval()
    given = inputs(torch.float64, mask)
    tangent = torch.randn(given["hidden_states"].shape, generator=torch.Generator().manual_seed(2)).double()
    expected = expected_dual(stock, given, tangent)
    found = cross_attention_dual_forward(
        ours, given["hidden_states"], tangent, given["encoder_hidden_states"], given["attention_mask"]
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    rest = {name: value for name, value in given.items() if name != "hidden_states"}
    by_the_processor = torch.func.jvp(lambda x: ours(x, **rest), (given["hidden_states"],), (tangent,))
    torch.testing.assert_close(by_the_processor, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "mask"),
    [(torch.float32, "none"), (torch.float16, "[B, 1, L] bias"), (torch.bfloat16, "[B, 1, 1, L] booleans")],
)
def test_the_dual_against_float64(path: str, dtype: torch.dtype, mask: str) -> None:
    ours, stock = attention(dtype, qk_norm="torch")
    given = inputs(dtype, mask)
    tangent = torch.randn(given["hidden_states"].shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        found = cross_attention_dual_forward(
            ours, given["hidden_states"], tangent, given["encoder_hidden_states"], given["attention_mask"]
        )
    stock = stock.double()

    def exact() -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(("y", "dy"), expected_dual(stock, wide(given), tangent.double()), strict=True))

    assert_rounded(dict(zip(("y", "dy"), found, strict=True)), exact, inner=dtype)


def test_output_and_tangent_share_one_draw_of_dropout() -> None:
    ours, stock = attention(torch.float64, dropout=0.5)
    given = inputs(torch.float64)
    x = given["hidden_states"]
    torch.manual_seed(3)
    found = cross_attention_dual_forward(ours, x, x, given["encoder_hidden_states"])
    torch.manual_seed(3)
    expected = expected_dual(stock, given, x)
    assert (expected[0] == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "of_bias"), [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_a_bias_may_have_a_dtype_of_its_own(dtype: torch.dtype, of_bias: torch.dtype) -> None:
    ours, stock = attention(dtype)
    given = inputs(dtype, "[B, 1, L] bias")
    expected = stock(**given)
    given["attention_mask"] = given["attention_mask"].to(of_bias)
    torch.testing.assert_close(ours(**given), expected)


def test_a_whole_transformer_takes_it() -> None:
    torch.manual_seed(0)
    model = SanaTransformer2DModel(
        in_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=1,
        cross_attention_head_dim=32,
        cross_attention_dim=32,
        caption_channels=8,
        sample_size=4,
    ).double()
    given = {
        "hidden_states": torch.randn(2, 4, 4, 4).double(),
        "encoder_hidden_states": torch.randn(2, 6, 8).double(),
        "timestep": torch.tensor([1, 2]),
        "encoder_attention_mask": torch.arange(6) < torch.tensor([[6], [2]]),
    }
    expected = model(**given).sample
    for block in model.transformer_blocks:
        block.attn2.set_processor(CrossAttentionProcessor())
    torch.testing.assert_close(model(**given).sample, expected, rtol=1e-10, atol=1e-10)


def test_masks_that_do_not_fit_are_named() -> None:
    ours, _ = attention(torch.float32)
    given = inputs(torch.float32)
    for mask in (torch.zeros(2, 12), torch.zeros(1, 13), torch.zeros(2, 21, 13), torch.zeros(2, HEADS, 1, 13)):
        with pytest.raises(ValueError, match=r"attention_mask must be \[2, 13\]"):
            ours(**{**given, "attention_mask": mask})
    with pytest.raises(ValueError, match="booleans or floats"):
        ours(**{**given, "attention_mask": torch.ones(2, 13, dtype=torch.int64)})
