"""The consistency loss and its gradient, on both paths, against float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ddx.kernels.consistency import consistency_loss, consistency_loss_reference
from guarded_losses import kept_in, loss_and_gradients
from operations import assert_rounded

VARIED = ("prediction",)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, weighted: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, *shape, generator=generator).to(dtype)
    prediction.view(-1)[0] = target.view(-1)[0]  # a difference of zero is the Huber loss's smoothest point
    weight = torch.rand(shape[0], generator=generator) + 0.1
    return {"prediction": prediction, "target": target} | ({"weight": weight} if weighted else {})


@pytest.mark.parametrize(
    ("shape", "dtype", "weighted", "c"),
    [
        ((1, 1), torch.float16, False, 0.001),
        ((2, 1023), torch.float32, True, 0.001),
        ((2, 1023), torch.bfloat16, False, None),
        ((3, 4, 7, 11), torch.bfloat16, True, 0.3),
        ((2, 2, 32, 33), torch.float16, True, None),
        ((2, 2, 32, 33), torch.float32, False, 0.3),
    ],
)
def test_loss_and_gradient_against_float64(
    path: str, shape, dtype: torch.dtype, weighted: bool, c: float | None
) -> None:
    given = inputs(shape, dtype, weighted=weighted)
    wide = {name: value.double() for name, value in given.items()}
    ours = loss_and_gradients(functools.partial(consistency_loss, c=c), given, VARIED)
    reference = functools.partial(consistency_loss_reference, c=c)
    assert_rounded(ours, lambda: loss_and_gradients(reference, wide, VARIED), inner=kept_in(dtype))


def test_small_differences_keep_their_digits(path: str) -> None:
    loss = consistency_loss(torch.full((1, 64), 1e-6), torch.zeros(1, 64), c=0.001)
    torch.testing.assert_close(loss, torch.tensor([1e-12 / 2e-3]), rtol=1e-5, atol=0)


def test_small_weights_do_not_vanish_in_half_precision(path: str) -> None:
    prediction = torch.full((1, 64), 3.0, dtype=torch.float16, requires_grad=True)
    loss = consistency_loss(prediction, torch.zeros_like(prediction), torch.tensor([1e-6]), c=None)
    (loss * 1e6).sum().backward()
    torch.testing.assert_close(prediction.grad, torch.full_like(prediction, 2 * 3 / 64))


def test_the_reference_passes_gradcheck() -> None:
    prediction = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randn(2, 5, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    for c in (0.1, None):
        assert torch.autograd.gradcheck(
            lambda x, c=c: consistency_loss_reference(x, target, weight, c=c), (prediction,)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(2, 3), torch.randn(2, 4)), r"equal and not empty; got .*target \(2, 4\)"),
        ((torch.randn(0, 3), torch.randn(0, 3)), "not empty"),
        ((torch.randn(2, 3), torch.randn(2, 3), torch.ones(3)), r"weight must be \[2\]"),
    ],
)
def test_wrong_shapes_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        consistency_loss(*arguments)
    with pytest.raises(ValueError, match="positive"):
        consistency_loss(torch.randn(2, 3), torch.randn(2, 3), c=0.0)
