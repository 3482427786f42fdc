"""SiLU, depthwise convolution and GLU: output, gradients and tangent, on both paths, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels import glumbconv_mid as module
from ddx.kernels.glumbconv_mid import (
    glumbconv_mid,
    glumbconv_mid_dual,
    glumbconv_mid_dual_reference,
    glumbconv_mid_reference,
)
from operations import (
    assert_forward_mode_is_right,
    assert_rounded,
    gradients,
    poisoned_outputs,
)

CASES = [
    ((1, 3, 4, 10), torch.float32),  # two strips, two segments and two blocks of channels, with a rest of each
    ((1, 3, 2, 6), torch.float16),
    ((2, 3, 1, 6), torch.bfloat16),
    ((1, 1, 5, 6), torch.bfloat16),
    ((1, 1, 1, 2), torch.float32),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that small images do not fit into, and that are interpreted quickly."""
    for launch in (module.FORWARD, module.BACKWARD, module.TRANSPOSED, module.DUAL):
        monkeypatch.setattr(launch, "forced", {"BLOCK_C": 4, "ROWS": 2, "COLUMNS": 3})


@pytest.fixture
def default_tiles(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles that a GPU runs with."""
    for launch in (module.FORWARD, module.BACKWARD, module.TRANSPOSED, module.DUAL):
        monkeypatch.setattr(launch, "forced", None)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, *, biased: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "x": torch.randn(shape, generator=generator),
        "weight": torch.randn(shape[-1], 1, 3, 3, generator=generator) / 3,
    }
    if biased:
        drawn["bias"] = torch.randn(shape[-1], generator=generator)
    return {name: value.to(dtype) for name, value in drawn.items()}


def tangent(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def wide(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in values.items()}


def assert_gradients_against_float64(given: dict[str, Tensor]) -> None:
    dtype = given["x"].dtype
    ours = gradients(glumbconv_mid, given)
    assert {value.dtype for value in ours.values()} == {dtype}
    # The gradient of h stands in memory between two kernels; and plain torch rounds between its operations.
    plain = dispatch.backend("cpu") == "torch"
    inner = lambda name: dtype if plain or name.startswith("gradient") else torch.float32  # noqa: E731
    assert_rounded(ours, lambda: gradients(glumbconv_mid_reference, wide(given)), inner=inner)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_output_and_gradients_against_float64(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_gradients_against_float64(inputs(shape, dtype))


def test_output_and_gradients_without_a_bias(path: str) -> None:
    assert_gradients_against_float64(inputs((1, 2, 2, 6), torch.float32, biased=False))


def test_output_and_gradients_with_the_tiles_of_a_gpu(triton_path: None, default_tiles: None) -> None:
    assert_gradients_against_float64(inputs((1, 9, 1, 130), torch.float16))


def test_an_odd_number_of_tokens_with_the_tiles_of_a_gpu(triton_path: None, default_tiles: None) -> None:
    given = inputs((1, 7, 11, 6), torch.float16)
    assert_rounded({"y": glumbconv_mid(**given)}, lambda: {"y": glumbconv_mid_reference(**wide(given))})


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_tangent_against_float64(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = {**inputs(shape, dtype, biased=shape[1] > 1), "dx": tangent(shape, dtype)}
    y, dy = glumbconv_mid_dual(**given)
    assert y.dtype == dy.dtype == dtype
    assert_rounded(
        {"y": y, "dy": dy},
        lambda: dict(zip(("y", "dy"), glumbconv_mid_dual_reference(**wide(given)), strict=True)),
        inner=dtype if path == "torch" else torch.float32,
    )


def test_the_dual_reference_is_the_forward_derivative() -> None:
    given = wide(inputs((2, 3, 4, 10), torch.float32))
    x, weight, bias = given.values()
    dx = tangent(x.shape, torch.float64)
    y, dy = torch.func.jvp(lambda x: glumbconv_mid_reference(x, weight, bias), (x,), (dx,))
    torch.testing.assert_close(glumbconv_mid_dual_reference(x, dx, weight, bias), (y, dy), rtol=1e-12, atol=1e-12)


def test_parameters_may_have_a_wider_dtype(path: str) -> None:
    given = inputs((1, 2, 3, 6), torch.float32)
    given["x"] = given["x"].half()
    found, exact = gradients(glumbconv_mid, given), gradients(glumbconv_mid_reference, wide(given))
    assert found["output 0"].dtype == found["gradient of x"].dtype == torch.float16
    assert found["gradient of weight"].dtype == found["gradient of bias"].dtype == torch.float32
    for name, value in found.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=5e-3, atol=5e-3)


def test_strided_inputs_are_read_in_place(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, rows and columns in another order within a wider tensor, and channels that are far apart."""
    whole = torch.randn(3, 1, 2, 9, generator=torch.Generator().manual_seed(2)).transpose(0, 2)
    x, dx = whole[..., :6], whole[..., 3:]
    given = inputs((2, 1, 3, 6), torch.float32)
    weight, bias = given["weight"], given["bias"]
    leaf, plain_leaf = x.detach().requires_grad_(), x.detach().requires_grad_()
    cotangent = whole[..., 2:5]
    with poisoned_outputs(monkeypatch):
        y = glumbconv_mid(leaf, weight, bias)
        (gradient,) = torch.autograd.grad(y, leaf, cotangent)
        dual = glumbconv_mid_dual(x, dx, weight, bias)
    plain = glumbconv_mid_reference(plain_leaf, weight, bias)
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, plain_leaf, cotangent)[0])
    torch.testing.assert_close(dual, glumbconv_mid_dual_reference(x, dx, weight, bias))
    first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(glumbconv_mid(first, weight, bias), plain)


def test_every_element_is_written_and_none_outside(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs((1, 1, 4, 6), torch.float32)
    with poisoned_outputs(monkeypatch):
        found = gradients(glumbconv_mid, given)
        found |= dict(enumerate(glumbconv_mid_dual(dx=given["x"], **given)))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_a_program_writes_its_own_tile_and_no_other(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs programs in order, so a later one would hide what an earlier one wrote into its tile."""
    given = inputs((1, 3, 4, 10), torch.float32)
    monkeypatch.setattr(module, "_programs", lambda *_: (4, 1))
    with poisoned_outputs(monkeypatch):
        y = glumbconv_mid(**given)
        dual = glumbconv_mid_dual(dx=given["x"], **given)
        dx, _ = module.glumbconv_mid_backward(y.nan_to_num(), *given.values(), True)
    for written in (y, *dual, dx):
        tile = torch.isfinite(written)
        assert not tile[:, 2:].any() and not tile[:, :, 3:].any() and not tile[..., 4:].any()
    assert torch.isfinite(y[:, :2, :3, :4]).all()


def test_large_values_saturate_and_nan_stays_where_it_is(path: str) -> None:
    given = inputs((1, 2, 3, 6), torch.float32)
    given["x"].view(-1)[:6] = torch.tensor([-1e30, -1e4, -100.0, -89.0, 89.0, 1e4])
    exact = glumbconv_mid_reference(**wide(given))
    torch.testing.assert_close(glumbconv_mid(**given).double(), exact, rtol=1e-5, atol=1e-6)
    assert all(torch.isfinite(value).all() for value in gradients(glumbconv_mid, given).values())
    given["x"][0, 0, 0, 1] = float("nan")
    nan = torch.isnan(glumbconv_mid(**given))
    assert nan[0, :2, :2, 1].all() and nan.sum() == 4


def test_repeated_runs_give_the_same_bits(triton_path: None) -> None:
    given = inputs((1, 3, 1, 6), torch.float16)
    first, second = gradients(glumbconv_mid, given), gradients(glumbconv_mid, given)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_weights_get_no_gradient_and_cost_none(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs((1, 2, 2, 6), torch.float16)
    x = given["x"].requires_grad_()
    with poisoned_outputs(monkeypatch) as allocated:
        glumbconv_mid(**given).sum().backward()
    assert x.grad is not None and given["weight"].grad is None
    assert sum(buffer.numel() for buffer in allocated if buffer.dtype == torch.float32) == 0


def test_the_bias_alone_may_be_trained(triton_path: None) -> None:
    given = inputs((1, 2, 2, 6), torch.float32)
    exact = gradients(glumbconv_mid_reference, wide(given))["gradient of bias"]
    cotangent = torch.randn((1, 2, 2, 3), generator=torch.Generator().manual_seed(7))
    bias = given["bias"].requires_grad_()
    (found,) = torch.autograd.grad(glumbconv_mid(given["x"], given["weight"], bias), bias, cotangent)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_only_its_inputs_are_kept_for_the_backward_pass(triton_path: None) -> None:
    given = {name: value.requires_grad_() for name, value in inputs((1, 2, 2, 6), torch.float32).items()}
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.data_ptr()) or saved, lambda it: it):
        glumbconv_mid(**given)
    assert sorted(kept) == sorted(value.data_ptr() for value in given.values())


def test_forward_mode_is_right(triton_path: None) -> None:
    given = inputs((1, 1, 2, 4), torch.float32)
    assert_forward_mode_is_right(lambda x: glumbconv_mid(x, given["weight"], given["bias"]), given["x"])


def test_a_second_derivative_is_refused_not_answered_with_zero(triton_path: None) -> None:
    given = inputs((1, 1, 2, 2), torch.float32)
    x = given["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(glumbconv_mid(**given).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.square().sum().backward()


def test_it_compiles_whole(triton_path: None) -> None:
    given = inputs((1, 2, 3, 6), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(glumbconv_mid, backend="aot_eager", fullgraph=True)
    ours, plain = gradients(compiled, given), gradients(glumbconv_mid, given)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])


def test_what_is_promised_to_the_compiler_is_what_comes(triton_path: None) -> None:
    x, weight, bias = inputs((1, 1, 2, 4), torch.float32).values()
    x, g = torch.stack([x, x], dim=-1)[..., 0], torch.randn(1, 1, 2, 2)
    for operation, arguments in (
        (module._glumbconv_mid, (x, weight, bias)),
        (module.glumbconv_mid_backward, (g, x, weight, None, True)),
        (module.glumbconv_mid_backward, (g, x, weight, bias, False)),
        (module._glumbconv_mid_dual, (x, x, weight, bias)),
    ):
        torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_reference_passes_gradcheck() -> None:
    given = {name: value.requires_grad_() for name, value in wide(inputs((1, 2, 2, 4), torch.float32)).items()}
    assert torch.autograd.gradcheck(glumbconv_mid_reference, tuple(given.values()))


def test_wrong_shapes_are_named() -> None:
    x, weight = torch.randn(1, 2, 2, 4), torch.randn(4, 1, 3, 3)
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, 2C\]"):
        glumbconv_mid(torch.randn(1, 2, 2, 3), torch.randn(3, 1, 3, 3))
    with pytest.raises(ValueError, match="not empty"):
        glumbconv_mid(x[:, :0], weight)
    with pytest.raises(ValueError, match=r"weight must be \[4, 1, 3, 3\]"):
        glumbconv_mid(x, weight[:2])
    with pytest.raises(ValueError, match=r"bias must be \[4\]"):
        glumbconv_mid(x, weight, torch.ones(3))
    with pytest.raises(ValueError, match="one shape"):
        glumbconv_mid_dual(x, x[:, :1], weight)
