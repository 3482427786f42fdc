"""What the tests of kernels hold results to: any order of rounding passes, and one wrong tap or pixel does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddx.kernels.glumbconv_mid import glumbconv_mid_reference
from operations import assert_rounded, gradients

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def drawn(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (1, 3, 4, 10), "weight": (10, 1, 3, 3), "bias": (10,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def exact(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return gradients(glumbconv_mid_reference, {name: value.double() for name, value in given.items()})


def rounded(found: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in found.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_tap_is_no_rounding(dtype: torch.dtype) -> None:
    given = drawn(dtype)
    assert_rounded(rounded(exact(given), dtype), lambda: exact(given), inner=dtype)
    broken = {**given, "weight": given["weight"].clone()}
    broken["weight"][:, 0, 1, 2] = 0  # as a kernel that leaves it out
    for name, value in rounded(exact(broken), dtype).items():
        if "bias" not in name:
            with pytest.raises(AssertionError, match="by rounding"):
                assert_rounded({name: value}, lambda name=name: {name: exact(given)[name]}, inner=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_missing_pixel_in_a_sum_is_no_rounding(dtype: torch.dtype) -> None:
    given = drawn(dtype)
    whole = exact(given)["gradient of bias"]
    generator = torch.Generator().manual_seed(7)  # the cotangent that `gradients` draws
    cotangent = torch.randn((1, 3, 4, 5), generator=generator).double()
    cotangent[0, 1, 2] = 0
    wide = {name: value.double() for name, value in given.items()}
    bias = wide["bias"].requires_grad_()
    (part,) = torch.autograd.grad(glumbconv_mid_reference(**wide), bias, cotangent)
    assert_rounded({"bias": whole.to(dtype)}, lambda: {"bias": exact(given)["gradient of bias"]}, inner=dtype)
    with pytest.raises(AssertionError, match="by rounding"):
        assert_rounded({"bias": part.to(dtype)}, lambda: {"bias": exact(given)["gradient of bias"]}, inner=dtype)


def test_a_sum_in_another_order_is_rounding_and_one_in_half_precision_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator) + 100 * torch.tensor([1.0, -1.0]).repeat(500)
    ordered = torch.tensor(0.0)
    for value in x.sort().values:  # all that is negative first: the partial sums are as large as they can be
        ordered += value
    assert_rounded({"sum": ordered}, lambda: {"sum": x.double().sum()})
    x, narrow = torch.rand(1000, generator=generator).half(), torch.tensor(0.0).half()
    for value in x:
        narrow += value
    with pytest.raises(AssertionError, match="by rounding"):
        assert_rounded({"sum": narrow.float()}, lambda: {"sum": x.double().sum()})


def test_nan_and_a_wrong_shape_are_no_rounding() -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="is not finite"):
        assert_rounded({"x": x.log().log()}, lambda: {"x": x.double()})
    with pytest.raises(AssertionError, match=r"\(1,\) is not \(3,\)"):
        assert_rounded({"x": x[:1]}, lambda: {"x": x.double()})
