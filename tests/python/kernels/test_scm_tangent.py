"""The loss of sCM and its gradients, on both paths, against float64; and the flow map that it has nothing to teach."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.kernels.scm_tangent import TERMS, scm_loss, scm_loss_reference
from guarded_losses import kept_in, loss_and_gradients
from operations import assert_rounded

SAMPLES = ("output", "target_output", "teacher_tangent", "jvp", "x_t")
VARIED = ("output", "log_weight")


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name in SAMPLES}
    t = torch.linspace(0.05, 1.5, shape[0]).flip(0)
    return drawn | {"t": t, "log_weight": torch.randn(shape[0], generator=generator)}


L2, RMS, COLD = {"warmup": 1.0}, {"warmup": 0.3, "normalise": "rms", "c": 0.2}, {"warmup": 0.0, "sigma_data": 0.7}


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((1, 1), torch.float16, L2),
        ((2, 1023), torch.float32, L2),
        ((2, 1023), torch.bfloat16, RMS),
        ((3, 4, 7, 11), torch.bfloat16, COLD),
        ((2, 2, 32, 33), torch.float16, COLD),
        ((2, 2, 32, 33), torch.float32, RMS),
    ],
)
def test_loss_and_gradients_against_float64(path: str, shape, dtype: torch.dtype, options: dict[str, Any]) -> None:
    given = inputs(shape, dtype)
    wide = {name: value.double() for name, value in given.items()}
    ours = loss_and_gradients(functools.partial(scm_loss, **options), given, VARIED)
    reference = functools.partial(scm_loss_reference, **options)
    assert_rounded(ours, lambda: loss_and_gradients(reference, wide, VARIED), inner=kept_in(dtype))


@pytest.mark.parametrize("normalise", ["l2", "rms"])
def test_it_is_algorithm_1_of_the_paper(path: str, normalise: str) -> None:
    given = {name: value.double() for name, value in inputs((3, 4, 7, 11)).items()}
    f, f_minus, dx, jvp, x = (given[name] for name in SAMPLES)
    for row in range(3):
        t, w, s, r, c = float(given["t"][row]), -given["log_weight"][row], 0.5, 0.4, 0.1
        g = -(math.cos(t) ** 2) * (s * f_minus[row] - dx[row]) - r * (math.cos(t) * math.sin(t) * x[row] + s * jvp[row])
        norm = g.norm() if normalise == "l2" else g.square().mean().sqrt()
        error = (f[row] - f_minus[row] - g / (norm + c)).square().mean()
        expected = torch.exp(w) / (s * math.tan(t)) * error - w
        row_of = {name: value[row : row + 1] for name, value in given.items()}
        loss = scm_loss(**row_of, warmup=r, normalise=normalise)[0]
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_the_exact_flow_map_has_no_tangent() -> None:
    """Data of variance s_d**2 stay where they are, so F(x, t) = -tan(t/2) x / s_d maps each x_t to itself."""
    x, t, s = torch.randn(4, 77, dtype=torch.float64), torch.tensor([0.1, 0.7, 1.2, 1.5]).double(), 0.5
    angle = t[:, None]

    def network(scaled: Tensor, time: Tensor) -> Tensor:
        return -torch.tan(time / 2) * scaled

    dx = torch.zeros_like(x)
    amount = torch.cos(angle) * torch.sin(angle)
    output, jvp = torch.func.jvp(network, (x / s, angle), (amount * dx / s, amount))
    loss = scm_loss_reference(output, output, dx, jvp, x, t, torch.full((4,), 0.3).double(), warmup=1.0)
    torch.testing.assert_close(loss, torch.full((4,), 0.3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_and_sine_over_all_times(path: str, dtype: torch.dtype) -> None:
    count = 17
    t = torch.linspace(0, math.pi / 2, count, dtype=torch.float64).to(dtype)
    ones, zeros = torch.ones(count, 1), torch.zeros(count, 1)
    # with c so large that h stays as it is, up to a factor, these are cos(t)**2 and cos(t) sin(t)
    huge, u = 1e4, torch.zeros(count)
    weight = t.double().cos() / (0.5 * t.double().sin().clamp(min=1e-4))
    for given, expected in (
        ((zeros, zeros, ones, zeros, zeros), t.double().cos() ** 2),
        ((zeros, zeros, zeros, zeros, ones), t.double().cos() * t.double().sin()),
    ):
        loss = scm_loss(*(huge * value for value in given), t, u, warmup=1.0, c=huge)
        wanted = weight * (huge * expected / (huge * expected + huge)) ** 2
        torch.testing.assert_close(loss.double(), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_time_have_a_finite_weight(path: str, dtype: torch.dtype) -> None:
    given = inputs((2, 7))
    given["t"] = torch.tensor([0.0, math.pi / 2], dtype=dtype)
    loss, gradient, _ = loss_and_gradients(functools.partial(scm_loss, warmup=1.0), given, VARIED).values()
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert loss[0] > 100 and gradient[0].abs().max() > 100
    torch.testing.assert_close(loss[1], given["log_weight"][1])
    assert (gradient[1].abs() < 1e-6).all()


def test_the_loss_does_not_depend_on_the_other_kernel_s_blocks(triton_path: None) -> None:
    given, loss = inputs((3, 2, 1023)), functools.partial(scm_loss, warmup=1.0)
    both = loss_and_gradients(loss, given, VARIED)
    with TERMS.force({"BLOCK": 512, "num_warps": 2}):
        small = loss_and_gradients(loss, given, VARIED)
    assert all(torch.equal(small[name], both[name]) for name in both)
    for name, value in loss_and_gradients(loss, given, ("log_weight",)).items():  # one block finishes the loss
        assert torch.equal(value, both[name]), name


def test_the_reference_passes_gradcheck() -> None:
    given = {name: value.double() for name, value in inputs((3, 5)).items()}
    leaves = [given.pop(name).requires_grad_() for name in VARIED]
    assert torch.autograd.gradcheck(
        lambda output, u: scm_loss_reference(output=output, log_weight=u, **given, warmup=0.7), leaves
    )


def test_wrong_arguments_are_named() -> None:
    given = inputs((3, 5))
    for changed, message in (
        ({"jvp": torch.randn(3, 4)}, r"equal and not empty; got .*jvp \(3, 4\)"),
        ({"t": torch.randn(3, 1)}, r"t must be \[3\]"),
        ({"log_weight": torch.randn(2)}, r"log_weight must be \[3\]"),
        ({"normalise": "l1"}, "normalise must be 'l2' or 'rms', got 'l1'"),
        ({"c": 0.0}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            scm_loss(**{**given, "warmup": 1.0, **changed})
