"""A linear layer's dual, and that of any module, against torch.func.jvp."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from ddx.kernels.dual_linear import dual_linear, dual_module, is_plain_linear


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_lora(module: nn.Module, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model of one linear layer "to_q", wrapped by peft and with B not zero."""
    model = nn.ModuleDict({"to_q": module})
    config = peft.LoraConfig(r=2, target_modules=["to_q"], lora_dropout=dropout, init_lora_weights=False)
    return peft.inject_adapter_in_model(config, model).to(dtype)["to_q"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_forward_derivative(biased: bool, dtype: torch.dtype) -> None:
    linear = nn.Linear(7, 5, bias=biased, dtype=dtype)
    x, dx = draw(2, 3, 7, dtype=dtype), draw(2, 3, 7, dtype=dtype, seed=1)
    expected = torch.func.jvp(linear, (x,), (dx,))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for found in (dual_linear(x, dx, linear.weight, linear.bias), dual_module(linear, x, dx)):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_lora_is_differentiated_with_its_adapter() -> None:
    layer = with_lora(nn.Linear(7, 5))
    assert not is_plain_linear(layer)
    x, dx = draw(2, 3, 7), draw(2, 3, 7, seed=1)
    y, dy = dual_module(layer, x, dx)
    adapter = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    assert adapter.abs().max() > 0
    torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dy, dx @ (layer.base_layer.weight + adapter).T, rtol=1e-12, atol=1e-12)


def test_output_and_tangent_share_one_draw_of_dropout() -> None:
    layer = with_lora(nn.Linear(7, 5), dropout=0.5).train()
    x = draw(2, 3, 7)
    torch.manual_seed(0)
    y, dy = dual_module(layer, x, x)  # of an affine map: y less its bias
    torch.testing.assert_close(dy, y - layer.base_layer.bias, rtol=1e-12, atol=1e-12)


def test_a_dropout_that_drops_is_differentiated_and_another_passed_by() -> None:
    x, dx = draw(2, 3, 7), draw(2, 3, 7, seed=1)
    assert dual_module(nn.Dropout(0.5).eval(), x, dx) == (x, dx)
    y, dy = dual_module(nn.Dropout(0.5).train(), x, dx)
    torch.testing.assert_close(dy, torch.where(y == 0, 0, 2 * dx))
    assert (y == 0).any() and (y != 0).any()


def test_what_stands_around_a_linear_layer_is_called() -> None:
    x, dx = draw(3, 7), draw(3, 7, seed=1)
    hooked = nn.Linear(7, 5, dtype=torch.float64)
    hooked.register_forward_hook(lambda module, args, output: output.square())
    offloaded = nn.Linear(7, 5, dtype=torch.float64)
    offloaded.forward = lambda x: torch.sin(x)
    parametrised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(7, 5, dtype=torch.float64))
    for module in (hooked, offloaded, parametrised):
        assert not is_plain_linear(module)
        expected = torch.func.jvp(module, (x,), (dx,))
        torch.testing.assert_close(dual_module(module, x, dx), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
def test_autocast_casts_as_in_the_layer(lora: bool) -> None:
    layer = nn.Linear(7, 5)
    layer = with_lora(layer, dtype=torch.float32) if lora else layer
    x, dx = draw(3, 7, dtype=torch.float32), draw(3, 7, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y, dy = dual_module(layer, x, dx)
        expected = layer(x)
    assert y.dtype == dy.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dy.float(), dual_module(layer, x, dx)[1].float(), rtol=0.03, atol=0.03)


def test_wrong_shapes_are_named() -> None:
    x, weight = draw(2, 7), draw(5, 7)
    with pytest.raises(ValueError, match="x and dx must have one shape"):
        dual_linear(x, x[:1], weight)
    with pytest.raises(ValueError, match=r"weight must be \[M, 7\]"):
        dual_linear(x, x, weight.T)
    with pytest.raises(ValueError, match=r"bias must be \[5\]"):
        dual_linear(x, x, weight, draw(7))
