"""ReLU linear attention: output, gradients and tangent, on both paths, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.kernels.relu_linear_attention import relu_linear_attention, relu_linear_attention_reference
from ddx.kernels.relu_linear_attention_dual import relu_linear_attention_dual, relu_linear_attention_dual_reference
from operations import assert_forward_mode_is_right, assert_rounded, gradients, poisoned_outputs

CASES = [  # batch, tokens, heads, channels of a head; dtype; with a norm of queries and keys
    ((1, 1, 1, 16), torch.float32, False),
    ((1, 1, 1, 16), torch.float16, True),
    ((2, 77, 3, 32), torch.float32, True),
    ((2, 77, 3, 32), torch.bfloat16, False),
    ((1, 77, 2, 24), torch.bfloat16, True),
    ((1, 300, 1, 24), torch.float16, False),
]
every_case = pytest.mark.parametrize(("shape", "dtype", "norm"), CASES)


def inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, *, norm: bool, dual: bool = False
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, tokens, heads, channels = shape
    drawn = {"qkv": torch.randn(batch, tokens, 3, heads, channels, generator=generator).to(dtype)}
    if dual:
        drawn["dqkv"] = torch.randn(drawn["qkv"].shape, generator=generator).to(dtype)
    for name in ("q_weight", "k_weight") if norm else ():
        drawn[name] = (1 + 0.3 * torch.randn(heads * channels, generator=generator)).to(dtype)
    return drawn


def wide(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in values.items()}


@every_case
def test_output_and_gradients_against_float64(path: str, shape: Any, dtype: torch.dtype, norm: bool) -> None:
    given = inputs(shape, dtype, norm=norm)
    ours = gradients(relu_linear_attention, given)
    assert {value.dtype for value in ours.values()} == {dtype}
    # A norm's result is rounded, as that of a norm of its own would be.
    inner = dtype if norm else torch.float32
    assert_rounded(ours, lambda: gradients(relu_linear_attention_reference, wide(given)), inner=inner)


@every_case
def test_tangent_against_float64(path: str, shape: Any, dtype: torch.dtype, norm: bool) -> None:
    given = inputs(shape, dtype, norm=norm, dual=True)
    o, do = relu_linear_attention_dual(**given)
    assert o.dtype == do.dtype == dtype
    inner = dtype if norm else torch.float32
    exact = lambda: dict(zip(("o", "do"), relu_linear_attention_dual_reference(**wide(given)), strict=True))  # noqa: E731
    assert_rounded({"o": o, "do": do}, exact, inner=inner)


def test_a_head_too_wide_for_the_kernel_takes_the_reference(triton_path: None) -> None:
    given = inputs((1, 5, 2, 72), torch.float32, norm=True, dual=True)
    torch.testing.assert_close(relu_linear_attention_dual(**given), relu_linear_attention_dual_reference(**given))
    del given["dqkv"]
    torch.testing.assert_close(relu_linear_attention(**given), relu_linear_attention_reference(**given))


@pytest.mark.parametrize("norm", [False, True])
def test_the_dual_reference_is_the_forward_derivative(norm: bool) -> None:
    given = wide(inputs((2, 33, 3, 16), torch.float32, norm=norm, dual=True))
    dqkv = given.pop("dqkv")
    constant = {name: value for name, value in given.items() if name.endswith("weight")}
    expected = torch.func.jvp(lambda qkv: relu_linear_attention_reference(qkv, **constant), (given["qkv"],), (dqkv,))
    torch.testing.assert_close(
        relu_linear_attention_dual_reference(dqkv=dqkv, **given), expected, rtol=1e-12, atol=1e-12
    )


def test_a_query_without_a_positive_channel_gives_zero(path: str) -> None:
    qkv = inputs((1, 20, 2, 16), torch.float32, norm=False)["qkv"]
    qkv[0, 3, 0] = -qkv[0, 3, 0].abs()
    found = gradients(relu_linear_attention, {"qkv": qkv})
    assert (found["output 0"][0, 3] == 0).all() and (found["gradient of qkv"][0, 3, 0] == 0).all()
    tangents = relu_linear_attention_dual(qkv, torch.ones_like(qkv))
    assert all(torch.isfinite(value).all() for value in (*found.values(), *tangents))


def test_a_value_that_is_not_a_number_stays_one(path: str) -> None:
    qkv = inputs((1, 20, 2, 16), torch.float32, norm=False)["qkv"]
    qkv[0, 5, 1, 0, 2] = float("nan")
    output = relu_linear_attention(qkv)
    assert torch.isnan(output[0, :, 0]).any() and torch.isfinite(output[0, :, 1]).all()


@pytest.mark.parametrize("norm", [False, True])
def test_strided_inputs_are_read_in_place(triton_path: None, monkeypatch: pytest.MonkeyPatch, norm: bool) -> None:
    given = inputs((2, 33, 3, 16), torch.float32, norm=norm)
    packed = torch.randn(2, 33, 4, 3, 16, generator=torch.Generator().manual_seed(2))
    qkv = packed[:, :, 1:]  # three of four, as behind another projection
    constant = {name: value for name, value in given.items() if name.endswith("weight")}
    with poisoned_outputs(monkeypatch) as allocated:
        output = relu_linear_attention(qkv, **constant)
    assert max(value.numel() for value in allocated) < qkv.numel(), "qkv was copied"
    torch.testing.assert_close(output, relu_linear_attention_reference(qkv, **constant), rtol=1e-4, atol=1e-5)


def test_other_strides_give_the_same(path: str) -> None:
    qkv = inputs((2, 33, 3, 16), torch.float32, norm=False)["qkv"]
    turned = qkv.permute(1, 3, 2, 4, 0).contiguous().permute(4, 0, 2, 1, 3)
    assert turned.stride() != qkv.stride()
    torch.testing.assert_close(relu_linear_attention(turned), relu_linear_attention(qkv))


@pytest.mark.parametrize("norm", [False, True])
def test_every_element_is_written_and_none_outside(
    triton_path: None, monkeypatch: pytest.MonkeyPatch, norm: bool
) -> None:
    given = inputs((1, 33, 2, 24), torch.float32, norm=norm, dual=True)
    with poisoned_outputs(monkeypatch):
        tangents = relu_linear_attention_dual(**given)
        dqkv = given.pop("dqkv")
        found = gradients(relu_linear_attention, given)
    assert dqkv.shape == given["qkv"].shape
    assert all(torch.isfinite(value).all() for value in (*found.values(), *tangents))


def test_repeated_runs_give_the_same_bits(triton_path: None) -> None:
    given = inputs((1, 40, 2, 16), torch.float16, norm=True)
    first, second = gradients(relu_linear_attention, given), gradients(relu_linear_attention, given)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_forward_mode_is_right(triton_path: None) -> None:
    given = inputs((1, 9, 2, 16), torch.float32, norm=True)
    qkv = given.pop("qkv").abs() + 0.1  # away from the kink, so that differences are derivatives
    assert_forward_mode_is_right(lambda qkv: relu_linear_attention(qkv, **given), qkv)


def test_a_second_derivative_is_refused_not_answered_with_zero(triton_path: None) -> None:
    qkv = inputs((1, 9, 2, 16), torch.float32, norm=False)["qkv"].requires_grad_()
    (gradient,) = torch.autograd.grad(relu_linear_attention(qkv).square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.square().sum().backward()


def test_it_compiles_whole(triton_path: None) -> None:
    given = inputs((1, 9, 2, 16), torch.float32, norm=True)
    torch._dynamo.reset()
    compiled = torch.compile(relu_linear_attention, backend="aot_eager", fullgraph=True)
    ours, plain = gradients(compiled, given), gradients(relu_linear_attention, given)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])


def test_the_reference_passes_gradcheck() -> None:
    given = wide(inputs((1, 5, 2, 4), torch.float32, norm=True))
    leaves = tuple(value.requires_grad_() for value in given.values())
    assert torch.autograd.gradcheck(
        lambda qkv, q, k: relu_linear_attention_reference(qkv, q_weight=q, k_weight=k), leaves
    )


def test_wrong_shapes_are_named() -> None:
    qkv = torch.randn(2, 5, 3, 2, 16)
    with pytest.raises(ValueError, match=r"\[B, N, 3, H, d\]"):
        relu_linear_attention(qkv[:, :, :2])
    with pytest.raises(ValueError, match="both weights or neither"):
        relu_linear_attention(qkv, q_weight=torch.ones(32))
    with pytest.raises(ValueError, match=r"k_weight must be \[32\]"):
        relu_linear_attention(qkv, q_weight=torch.ones(32), k_weight=torch.ones(31))
    with pytest.raises(ValueError, match="one shape"):
        relu_linear_attention_dual(qkv, qkv[:1])
