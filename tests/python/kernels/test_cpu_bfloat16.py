"""bfloat16 on CPUs, with and without bfloat16 instructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ddx.kernels import cpu_bfloat16
from ddx.kernels.cpu_bfloat16 import WideAttention, WideProducts, wide_products

CASES = {
    "linear": lambda x, w: F.linear(x, w[:, :, 0, 0]),
    "convolution": lambda x, w: F.conv2d(x.transpose(1, 2).unflatten(2, (4, 4)), w, padding=1),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[:, None], x[:, None] * 2, x[:, None]),
    "matmul": lambda x, w: x @ x.transpose(1, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_products_equal_float32_rounded_once_forward_and_backward(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, generator=generator).bfloat16()
    weight = torch.randn(12, 8, 3, 3, generator=generator).bfloat16()
    outputs = []
    for wide in (False, True):
        dtype = torch.bfloat16 if wide else torch.float32
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight)]
        with WideProducts() if wide else torch.enable_grad():
            output = CASES[name](*inputs)
            output.float().square().mean().backward()
        assert output.dtype == dtype
        outputs.append([output.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)])
    for exact, rounded in zip(*outputs, strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.01 * exact.abs().max().item())
    if name != "attention":
        assert torch.equal(outputs[1][0], outputs[0][0].bfloat16())


def test_a_cpu_gets_what_it_needs_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, "native", lambda: False)
    assert isinstance(wide_products("cpu", torch.bfloat16), WideProducts)
    assert not isinstance(wide_products("cpu", torch.float32), WideProducts)
    assert not isinstance(wide_products("cuda", torch.bfloat16), WideProducts)
    monkeypatch.setattr(cpu_bfloat16, "native", lambda: True)
    assert isinstance(wide_products("cpu", torch.bfloat16), WideAttention)
    assert not isinstance(wide_products("cpu", torch.float16), WideAttention)
    assert not isinstance(wide_products("cuda", torch.bfloat16), WideAttention)


class SeenAttention(TorchDispatchMode):
    """Notes the dtype of the queries and the number of keys of every attention of a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[torch.dtype] = []
        self.backward: list[torch.dtype] = []
        self.keys: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.forward.append(args[0].dtype)
            self.keys.append(args[1].shape[-2])
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.backward.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_differentiated_in_float32(autocast: bool, masked: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 3, tokens, 8, generator=generator).bfloat16() for tokens in (16, 5, 5)]
    mask = torch.tensor([0.0, 0.0, 0.0, -1e4, -1e4]).to(dtype).expand(2, 1, 1, 5) if masked else None
    exact = [value.float().requires_grad_() for value in values]
    inputs = [value.to(dtype).requires_grad_() for value in values]
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=None if mask is None else mask.float())
    wanted.square().mean().backward()
    with WideAttention(), SeenAttention() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        output.float().square().mean().backward()
    assert seen.forward == [torch.float32] and seen.backward == [torch.float32]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, wanted.bfloat16(), rtol=0.01, atol=0.001)  # one step of bfloat16 at most
    for tensor, reference in zip(inputs, exact, strict=True):
        assert tensor.grad is not None and tensor.grad.dtype == dtype
        torch.testing.assert_close(
            tensor.grad.float(), reference.grad, rtol=0.02, atol=0.02 * reference.grad.abs().max().item()
        )


MASKS = {
    "none": None,
    "true": torch.tensor([True] * 9 + [False] * 2).expand(2, 1, 1, 11),
    "of heads": torch.linspace(-3.0, 3.0, 2 * 3 * 11).view(2, 3, 1, 11),
    "of queries": torch.linspace(-3.0, 3.0, 16 * 11).view(16, 11),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("differentiated", [True, False])
def test_padded_keys_take_no_part(name: str, differentiated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 3, tokens, 8, generator=generator).bfloat16() for tokens in (16, 11, 11)]
    mask = MASKS[name]
    narrow = mask.bfloat16() if mask is not None and mask.is_floating_point() else mask
    wide = narrow.float() if narrow is not None and narrow.is_floating_point() else narrow
    wanted = F.scaled_dot_product_attention(*(value.float() for value in values), attn_mask=wide)
    inputs = [value.requires_grad_(differentiated) for value in values]
    with WideAttention(), SeenAttention() as seen:
        output = F.scaled_dot_product_attention(*inputs, attn_mask=narrow)
        causal = F.scaled_dot_product_attention(*inputs, is_causal=True)
    torch.testing.assert_close(output, wanted.bfloat16(), rtol=0.02, atol=0.02)
    assert seen.keys == [16, 11] and causal.shape == output.shape
    if differentiated:
        output.float().square().mean().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in inputs)


def test_attention_without_a_backward_pass_and_other_dtypes_are_left_alone() -> None:
    narrow = torch.randn(2, 3, 16, 8).bfloat16()
    wide = torch.randn(2, 3, 16, 8, requires_grad=True)
    with WideAttention(), SeenAttention() as seen:
        F.scaled_dot_product_attention(narrow, narrow, narrow)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            F.scaled_dot_product_attention(wide, wide, wide)
        assert F.scaled_dot_product_attention(wide, wide, wide).dtype == torch.float32
    assert seen.forward == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_autocast_products_are_widened_too() -> None:
    seen: list[torch.dtype] = []

    class Spy(WideProducts):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.addmm.default:
                seen.append(args[1].dtype)
            return super().__torch_dispatch__(func, types, args, kwargs)

    linear = torch.nn.Linear(8, 8)
    with Spy(), torch.autocast("cpu", torch.bfloat16):
        output = linear(torch.randn(4, 8))
        output.float().sum().backward()
    assert seen == [torch.bfloat16] and output.dtype == torch.bfloat16
    assert linear.weight.grad is not None and linear.weight.grad.dtype == torch.float32
