"""DMD's loss and its gradient, on both paths, against float64 and the forms that its papers give."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ddx.kernels.dmd import dmd_loss, dmd_loss_reference
from guarded_losses import kept_in, loss_and_gradients
from operations import assert_rounded


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    x, teacher, fake = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    return {"y_teacher": (x + 0.3 * teacher).to(dtype), "y_fake": (x + 0.4 * fake).to(dtype), "x": x.to(dtype)}


@pytest.mark.parametrize(
    ("shape", "dtype", "normalise"),
    [
        ((1, 1), torch.float16, True),
        ((2, 1023), torch.bfloat16, False),
        ((3, 4, 7, 11), torch.float32, True),
        ((2, 2, 32, 33), torch.float16, False),
        ((2, 2, 32, 33), torch.bfloat16, True),
    ],
)
def test_loss_and_gradient_against_float64(path: str, shape, dtype: torch.dtype, normalise: bool) -> None:
    given = inputs(shape, dtype)
    wide = {name: value.double() for name, value in given.items()}
    ours = loss_and_gradients(functools.partial(dmd_loss, normalise=normalise), given, ("x",))
    reference = functools.partial(dmd_loss_reference, normalise=normalise)
    assert_rounded(ours, lambda: loss_and_gradients(reference, wide, ("x",)), inner=kept_in(dtype))


def test_it_is_the_papers_square_and_its_gradient_the_scores_difference() -> None:
    """Yin et al. 2024: half the squared distance to stopgrad(x - grad); w = 1 is Diff-Instruct's gradient."""
    y_teacher, y_fake, x = (value.double() for value in inputs((3, 77)).values())
    given = {"y_teacher": y_teacher, "y_fake": y_fake, "x": x}
    w = (x - y_teacher).abs().mean(dim=1, keepdim=True)
    rows = torch.linspace(1, 2, 3).double()[:, None]
    for normalise, grad in ((True, (y_fake - y_teacher) / w), (False, y_fake - y_teacher)):
        loss = functools.partial(dmd_loss_reference, normalise=normalise)
        found = loss_and_gradients(loss, given, ("x",))
        square = 0.5 * (x - (x - grad)).square().sum(dim=1)
        torch.testing.assert_close(found["loss"], square, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["gradient of x"], rows * grad, rtol=1e-12, atol=1e-12)


def test_the_form_in_flow_velocities() -> None:
    x, noise, v_teacher, v_fake = torch.randn(4, 3, 77, dtype=torch.float64)
    t = torch.tensor([0.2, 0.6, 0.9]).double()[:, None]
    x_t, e = (1 - t) * x + t * noise, noise - x
    given = {"y_teacher": x_t - t * v_teacher, "y_fake": x_t - t * v_fake, "x": x}
    rows = torch.linspace(1, 2, 3).double()[:, None]
    expected = rows * (v_teacher - v_fake) / (e - v_teacher).abs().mean(dim=1, keepdim=True)
    found = loss_and_gradients(dmd_loss_reference, given, ("x",))["gradient of x"]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    plain = loss_and_gradients(functools.partial(dmd_loss_reference, normalise=False), given, ("x",))
    torch.testing.assert_close(plain["gradient of x"], rows * t * (v_teacher - v_fake), rtol=1e-11, atol=1e-11)


def test_the_weight_has_a_floor(path: str) -> None:
    loss = dmd_loss(torch.zeros(1, 4), torch.full((1, 4), 1e-5), torch.zeros(1, 4))
    torch.testing.assert_close(loss, torch.tensor([2.0]))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"equal and not empty; got .*x \(2, 4\)"):
        dmd_loss(torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 4))
