"""SiD's loss and its three gradients, on both paths, against float64; and what it has in common with its kin."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ddx.kernels.dmd import dmd_loss_reference
from ddx.kernels.sid import sid_loss, sid_loss_reference
from guarded_losses import kept_in, loss_and_gradients
from operations import assert_rounded

NAMES = ("y_teacher", "y_fake", "x")


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    x, teacher, fake = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    return {"y_teacher": (x + 0.3 * teacher).to(dtype), "y_fake": (x + 0.4 * fake).to(dtype), "x": x.to(dtype)}


def wide(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in values.items()}


@pytest.mark.parametrize(
    ("shape", "dtype", "alpha", "c1"),
    [
        ((1, 1), torch.float16, 1.0, 1.0),
        ((2, 1023), torch.bfloat16, 1.2, 1.0),
        ((3, 4, 7, 11), torch.float32, 0.0, 0.5),
        ((2, 2, 32, 33), torch.float16, 0.5, 0.0),
        ((2, 2, 32, 33), torch.float32, 1.2, 1.0),
    ],
)
def test_loss_and_gradients_against_float64(path: str, shape, dtype: torch.dtype, alpha: float, c1: float) -> None:
    given, options = inputs(shape, dtype), {"alpha": alpha, "c1": c1}
    ours = loss_and_gradients(functools.partial(sid_loss, **options), given, NAMES)
    reference = functools.partial(sid_loss_reference, **options)
    assert_rounded(ours, lambda: loss_and_gradients(reference, wide(given), NAMES), inner=kept_in(dtype))


@pytest.mark.parametrize("c1", [1.0, 0.7])
def test_gradients_are_the_formulas(path: str, c1: float) -> None:
    given, alpha = wide(inputs((3, 4, 7, 11))), 1.2
    y_teacher, y_fake, x = given.values()
    d, u = y_teacher - y_fake, y_teacher - x
    w = u.abs().mean(dim=(1, 2, 3), keepdim=True)
    factor = torch.linspace(1, 2, 3).double().reshape(3, 1, 1, 1) / w
    found = loss_and_gradients(functools.partial(sid_loss, alpha=alpha, c1=c1), given, NAMES)
    expected = (c1 * (u + d) - 2 * alpha * d, 2 * alpha * d - c1 * u, -c1 * d)
    for name, value in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(found[f"gradient of {name}"], factor * value, rtol=1e-12, atol=1e-12)


def test_with_both_scores_held_its_gradient_is_dmd_s() -> None:
    given = wide(inputs((3, 4, 7, 11)))
    for alpha in (0.0, 1.0, 1.2):
        sid = loss_and_gradients(functools.partial(sid_loss_reference, alpha=alpha), given, ("x",))
        dmd = loss_and_gradients(dmd_loss_reference, given, ("x",))
        torch.testing.assert_close(sid["gradient of x"], dmd["gradient of x"], rtol=1e-12, atol=1e-12)


def test_the_form_in_flow_velocities() -> None:
    x, noise, v_teacher, v_fake = torch.randn(4, 3, 77, dtype=torch.float64)
    t, alpha = torch.tensor([0.2, 0.6, 0.9]).double()[:, None], 1.2
    x_t, e = (1 - t) * x + t * noise, noise - x
    loss = sid_loss_reference(x_t - t * v_teacher, x_t - t * v_fake, x, alpha=alpha)
    difference = v_fake - v_teacher
    product = (difference * ((e - v_teacher) - alpha * difference)).sum(dim=1)
    torch.testing.assert_close(loss, t[:, 0] * product / (e - v_teacher).abs().mean(dim=1), rtol=1e-11, atol=1e-11)


def test_the_form_in_noise_without_alpha() -> None:
    x, noise, eps_teacher, eps_fake = torch.randn(4, 3, 77, dtype=torch.float64)
    scale, sigma = torch.tensor([0.9, 0.6, 0.2]).double()[:, None], torch.tensor([0.4, 0.8, 0.98]).double()[:, None]
    x_t = scale * x + sigma * noise
    y_teacher, y_fake = ((x_t - sigma * eps) / scale for eps in (eps_teacher, eps_fake))
    w = (x - y_teacher).abs().mean(dim=1)
    product = ((eps_teacher - eps_fake) * (eps_teacher - noise)).sum(dim=1)
    loss = sid_loss_reference(y_teacher, y_fake, x, alpha=0.0)
    torch.testing.assert_close(loss * w, ((sigma / scale) ** 2)[:, 0] * product, rtol=1e-11, atol=1e-11)


def test_the_weight_has_a_floor(path: str) -> None:
    y_fake = torch.full((1, 4), 1e-3)
    loss = sid_loss(torch.zeros(1, 4), y_fake, torch.zeros(1, 4))
    torch.testing.assert_close(loss, torch.tensor([-4 * 1e-6 / 1e-5]))


def test_dtypes_may_differ(path: str) -> None:
    given = inputs((3, 77))
    given["y_fake"] = given["y_fake"].to(torch.float16)
    ours, exact = (loss_and_gradients(sid_loss, values, NAMES) for values in (given, wide(given)))
    for name, value in ours.items():
        assert name == "loss" or value.dtype == given[name.removeprefix("gradient of ")].dtype
        torch.testing.assert_close(value.double(), exact[name], rtol=2e-3, atol=1e-5)


def test_strided_inputs(path: str) -> None:
    given = inputs((3, 6, 5, 7))
    halves = {name: torch.cat([value, value], dim=1).chunk(2, dim=1)[1] for name, value in given.items()}
    turned = {name: value.permute(0, 2, 3, 1) for name, value in given.items()}
    straight = loss_and_gradients(sid_loss, given, NAMES)
    torch.testing.assert_close(sid_loss(**halves), straight["loss"], rtol=0, atol=0)
    torch.testing.assert_close(sid_loss(**turned), straight["loss"])
    gradient = loss_and_gradients(sid_loss, turned, NAMES)["gradient of y_teacher"]
    torch.testing.assert_close(gradient, straight["gradient of y_teacher"].permute(0, 2, 3, 1))


def test_wrong_shapes_are_named() -> None:
    good = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"equal and not empty; got .*y_fake \(2, 4\)"):
        sid_loss(good, torch.randn(2, 4), good)
    with pytest.raises(ValueError, match="not empty"):
        sid_loss(*torch.randn(3, 0, 3))
    with pytest.raises(ValueError, match=r"\[B, \.\.\.\]"):
        sid_loss(*torch.randn(3, 4))
