"""bfloat16 on CPUs without bfloat16 instructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddx.kernels import cpu_bfloat16
from ddx.kernels.cpu_bfloat16 import WideProducts, wide_products

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


def test_it_is_entered_only_for_bfloat16_on_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, "native", lambda: False)
    assert isinstance(wide_products("cpu", torch.bfloat16), WideProducts)
    assert not isinstance(wide_products("cpu", torch.float32), WideProducts)
    assert not isinstance(wide_products("cuda", torch.bfloat16), WideProducts)
    monkeypatch.setattr(cpu_bfloat16, "native", lambda: True)
    assert not isinstance(wide_products("cpu", torch.bfloat16), WideProducts)


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
