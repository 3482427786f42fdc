"""Frozen layers in 8 and 4 bits: what they compute, gradients through them, and low-rank matrices around them."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddx.errors import UsageError
from ddx.networks.lora import add_lora, plain_state, shared_copy
from ddx.networks.quantised import BLOCK, Quantised, pack, quantise, quantised_layers, widen

HAS_4 = find_spec("bitsandbytes") is not None  # which every import of peft imports too: 3 s that the suite is spared
BITS = (8, pytest.param(4, marks=pytest.mark.skipif(not HAS_4, reason="4 bits are bitsandbytes'")))
CPU = torch.device("cpu")
NF4_GAP = (
    0.152  # half of the widest gap between two values of NormalFloat4, of the largest in a block (arXiv:2305.14314)
)


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "linear": nn.Linear(128, 96),
            "without_bias": nn.Linear(64, 64, bias=False),
            "pointwise": nn.Conv2d(64, 128, 1),
            "wide": nn.Conv2d(32, 32, 3, padding=1, stride=2),
            "depthwise": nn.Conv2d(512, 512, 3, groups=512),
            "small": nn.Linear(8, 8),
        }
    )


INPUTS = {"linear": (2, 5, 128), "without_bias": (3, 64), "pointwise": (2, 64, 6, 7), "wide": (2, 32, 9, 9)}


def plain(layer: Quantised, x: Tensor) -> Tensor:
    """The layer with its widened weights, as torch computes it."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    weight = layer.widened(x.dtype)
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding)
    return functional.linear(x, weight, bias)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_within_half_a_step(bits: int) -> None:
    network = layers()
    before = {name: module.weight.detach().clone() for name, module in network.items()}  # type: ignore[union-attr]
    quantise(network, [network], bits, CPU)
    assert {name for name, _ in quantised_layers(network)} == set(INPUTS)
    for name, layer in quantised_layers(network):
        error = (layer.weight - before[name]).abs()
        if bits == 8:
            assert layer.packed.dtype == torch.int8 and layer.packed.shape == before[name].shape
            step = before[name].flatten(1).abs().amax(dim=1) / 127.0
            assert (error.flatten(1) <= 0.501 * step[:, None]).all()
        else:
            assert layer.packed.numel() == before[name].numel() // 2
            largest = before[name].reshape(-1, BLOCK).abs().amax(dim=1)
            assert (error.reshape(-1, BLOCK) <= NF4_GAP * largest[:, None] + 1e-6).all()
        assert error.max() > 0.0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_compute_what_plain_ones_do_with_the_widened_weights(bits: int, dtype: torch.dtype) -> None:
    """Forwards, and the gradient of the input; also through a checkpoint, and twice."""
    network = quantise(layers(), [], bits, CPU)
    quantise(network, [network], bits, CPU)
    for name, layer in quantised_layers(network):
        x = torch.randn(INPUTS[name], dtype=dtype)
        with torch.no_grad():
            assert torch.equal(layer(x), plain(layer, x)), name
        found = []
        for call in (
            lambda v: layer(v),  # noqa: B023
            lambda v: torch.utils.checkpoint.checkpoint(layer, v, use_reentrant=False),  # noqa: B023
            lambda v: plain(layer, v),  # noqa: B023
        ):
            value = x.clone().requires_grad_()
            y = call(value)
            (gradient,) = torch.autograd.grad(y.float().square().sum(), value, create_graph=dtype == torch.float32)
            twice = gradient.detach()
            if dtype == torch.float32:
                (twice,) = torch.autograd.grad(gradient.square().sum(), value)
            found.append((y.detach(), gradient.detach(), twice))
        for ours in found[:2]:
            for mine, theirs in zip(ours, found[2], strict=True):
                bound = (1e-5 if dtype == torch.float32 else 2e-2) * float(theirs.abs().max())
                assert (mine.float() - theirs.float()).abs().max() <= bound, name


@pytest.mark.parametrize("bits", BITS)
def test_under_autocast_products_are_in_its_dtype(bits: int) -> None:
    network = quantise(layers(), [], bits, CPU)
    quantise(network, [network], bits, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network["linear"](torch.randn(2, 128, requires_grad=True))
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()


@pytest.mark.parametrize("bits", BITS)
def test_low_rank_copies_share_the_packed_weights(bits: int) -> None:
    base = quantise(layers(), [], bits, CPU)
    full = {f"{name}.weight": module.weight.detach().clone() for name, module in base.items()}  # type: ignore[union-attr]
    quantise(base, [base], bits, CPU)
    first, second = (add_lora(shared_copy(base), ("linear", "pointwise"), rank=4, alpha=4.0) for _ in range(2))
    inner = [network.get_submodule("linear.base_layer") for network in (first, second)]
    assert all(isinstance(layer, Quantised) and layer.packed is base["linear"].packed for layer in inner)
    trained = {name for name, value in first.named_parameters() if value.requires_grad}
    assert len(trained) == 4 and all(".lora_" in name for name in trained)
    x = torch.randn(3, 128)
    assert torch.equal(first["linear"](x), base["linear"](x))  # the product starts at zero
    first["linear"](x).square().sum().backward()
    up = first.get_submodule("linear.lora_B.default")
    assert isinstance(up.weight.grad, Tensor) and up.weight.grad.abs().max() > 0.0
    up.weight.data.normal_()
    merged, rounded = plain_state(first, full), plain_state(first)
    assert merged.keys() == rounded.keys() == {*full, *(f"{n}.bias" for n in base if n != "without_bias")}
    product = first.get_submodule("linear").get_delta_weight("default")  # type: ignore[operator]
    assert torch.allclose(merged["linear.weight"], full["linear.weight"] + product)
    assert torch.equal(merged["wide.weight"], full["wide.weight"])
    assert torch.equal(rounded["wide.weight"], base["wide"].weight)


def test_scales_of_zero_weights_and_odd_sizes() -> None:
    for bits in (8, 4) if HAS_4 else (8,):
        for shape in ((65, 67), (3, 5)):
            weight = torch.zeros(shape)
            weight[0, 0] = 1.5
            found = widen(*pack(weight, bits), bits, weight.shape, torch.float32)
            assert torch.equal(found, weight)


def test_four_bits_without_their_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="needs the package bitsandbytes") as refused:
        pack(torch.ones(64, 64), 4)
    assert "--base-bits 8" in str(refused.value.hint)
    assert pack(torch.ones(64, 64), 8)[0].dtype == torch.int8
