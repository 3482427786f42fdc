"""The consistency loss on the path that `DDX_KERNELS` names. Run by test_consistency.py, once for each path."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.consistency import consistency_loss, consistency_loss_reference

SHAPES = [(1, 1), (2, 1023), (3, 4, 7, 11), (2, 2, 32, 33)]
DTYPES = [torch.float32, torch.float16]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, *shape, generator=generator).to(dtype)
    prediction.view(-1)[0] = target.view(-1)[0]  # a difference of zero is the Huber loss's smoothest point
    return prediction, target, torch.rand(shape[0], generator=generator) + 0.1


def loss_and_gradient(function: Any, prediction: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = prediction.clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    (loss * torch.linspace(1, 2, len(loss), dtype=loss.dtype)).sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def test_this_is_the_path_that_was_asked_for() -> None:
    assert dispatch.backend("cpu") == os.environ["DDX_KERNELS"]


@pytest.mark.parametrize("c", [0.001, 0.3, None])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_against_float64(shape, dtype: torch.dtype, weighted: bool, c: float | None) -> None:
    prediction, target, weight = inputs(shape, dtype)
    weights = weight if weighted else None
    exact_weights = weight.double() if weighted else None
    exact = loss_and_gradient(consistency_loss_reference, prediction.double(), target.double(), exact_weights, c=c)
    eager = loss_and_gradient(consistency_loss_reference, prediction, target, weights, c=c)
    ours = loss_and_gradient(consistency_loss, prediction, target, weights, c=c)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == dtype
    for name, mine, theirs, true in zip(("loss", "gradient"), ours, eager, exact, strict=True):
        assert torch.isfinite(mine).all(), name
        tolerance = 2 * (theirs.double() - true).abs().max() + 2e-7 * true.abs().max()
        if name == "gradient":  # stored in the dtype of the prediction, and rounded once more by the row's factor
            tolerance += 2 * torch.finfo(dtype).eps * true.abs().max()
        assert (mine.double() - true).abs().max() <= tolerance, name


def test_small_differences_keep_their_digits() -> None:
    target = torch.zeros(1, 64)
    prediction = torch.full((1, 64), 1e-6)
    loss = consistency_loss(prediction, target, c=0.001)
    torch.testing.assert_close(loss, torch.tensor([1e-12 / 2e-3]), rtol=1e-5, atol=0)


def test_repeated_runs_give_the_same_bits() -> None:
    prediction, target, weight = inputs((2, 2, 32, 33), torch.float32)
    first, second = (loss_and_gradient(consistency_loss, prediction, target, weight) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_every_output_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))
    prediction, target, weight = inputs((3, 4, 7, 11), torch.float32)
    loss, gradient = loss_and_gradient(consistency_loss, prediction, target, weight)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_non_contiguous_inputs() -> None:
    prediction, target, weight = inputs((2, 5, 6, 7), torch.float32)
    strided = prediction.permute(0, 2, 3, 1)
    turned = loss_and_gradient(consistency_loss, strided, target.permute(0, 2, 3, 1), weight)
    straight = loss_and_gradient(consistency_loss, prediction, target, weight)
    torch.testing.assert_close(turned[0], straight[0])
    torch.testing.assert_close(turned[1], straight[1].permute(0, 2, 3, 1))


def test_the_target_and_the_weight_are_constants() -> None:
    prediction, target, weight = inputs((2, 9), torch.float32)
    target.requires_grad_()
    weight.requires_grad_()
    consistency_loss(prediction.requires_grad_(), target, weight).sum().backward()
    assert target.grad is None and weight.grad is None and prediction.grad is not None


def test_forward_mode_is_refused_not_answered_with_zero() -> None:
    prediction, target, _ = inputs((2, 9), torch.float32)
    with pytest.raises(NotImplementedError, match="consistency_loss_reference"):
        torch.func.jvp(lambda x: consistency_loss(x, target), (prediction,), (torch.ones_like(prediction),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        consistency_loss(prediction, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(2, 3), torch.randn(2, 4)), "equal"),
        ((torch.randn(0, 3), torch.randn(0, 3)), "not empty"),
        ((torch.randn(2, 3), torch.randn(2, 3), torch.ones(3)), "weight"),
    ],
)
def test_wrong_shapes_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        consistency_loss(*arguments)
    with pytest.raises(ValueError, match="positive"):
        consistency_loss(torch.randn(2, 3), torch.randn(2, 3), c=0.0)


def test_the_reference_passes_gradcheck() -> None:
    prediction = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randn(2, 5, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    for c in (0.1, None):
        assert torch.autograd.gradcheck(
            lambda x, c=c: consistency_loss_reference(x, target, weight, c=c), (prediction,)
        )
