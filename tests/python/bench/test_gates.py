"""The gate before a measurement: what is right passes, and nothing that is wrong does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench_cases import dual, stock, tanh_case
from ddx.bench.case import Mode
from ddx.bench.gates import Verdict, answers, gate
from ddx.bench.kernels import ON_A_CPU
from ddx.bench.operations import all_cases

CPU = torch.device("cpu")


def verdict(ours: Callable[..., Any] | None, mode: Mode = "forward", dtype: torch.dtype = torch.float32) -> Verdict:
    return gate(tanh_case(mode, ours), CPU, dtype, seed=3)


def in_half(function: Callable[..., Any]) -> Callable[..., Any]:
    """Right in float64, as the exact answer must be, and changed elsewhere."""

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return stock(x, w) if x.dtype == torch.float64 else function(x, w)

    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["forward", "backward", "dual"])
def test_what_is_right_passes(mode: Mode, dtype: torch.dtype) -> None:
    found = verdict(None, mode, dtype)
    assert found.passed, found.reason
    names = [error.name for error in found.errors]
    assert (
        names
        == ["output 0"]
        + {
            "forward": [],
            "backward": ["gradient of x", "gradient of w"],
            "dual": ["tangent 0"],
        }[mode]
    )
    assert all(0 < error.relative < 0.01 for error in found.errors)


@pytest.mark.parametrize("case", all_cases(ON_A_CPU[0]), ids=lambda case: f"{case.operation} {case.mode}")
def test_every_operation_passes(case) -> None:
    found = gate(case, CPU, torch.float32, seed=5)
    assert found.passed, found.reason


class Counter:
    """Something else each time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        self.calls += 1
        return stock(x, w) * (1 + 1e-7 * self.calls)


def nan_in_one_place(x: Tensor, w: Tensor) -> Tensor:
    y = stock(x, w).clone()
    y[3, 5] = float("nan")
    return y


def one_row_unwritten(x: Tensor, w: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[:-1] = stock(x, w)[:-1]
    return y


def wrong_in_one_place(x: Tensor, w: Tensor) -> Tensor:
    y = stock(x, w).clone()
    y[0, 0] += 1e-4
    return y


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        (in_half(lambda x, w: stock(x, w) * 1.001), "output 0: relative error 0.001, allowed"),
        (in_half(wrong_in_one_place), "largest error|relative error"),
        (in_half(nan_in_one_place), "output 0 is not finite"),
        (in_half(one_row_unwritten), "output 0 is not finite"),
        (in_half(lambda x, w: stock(x, w).half()), "output 0 is float16, stock's is float32"),
        (in_half(lambda x, w: stock(x, w)[:-1]), r"output 0 is \[7, 16\], stock's is \[8, 16\]"),
        (in_half(lambda x, w: (stock(x, w), x)), "ours returns output 0, output 1; stock returns output 0"),
        (in_half(Counter()), "not the same in two runs"),
        (lambda x, w: x * w, "different functions"),
        (lambda x, w: torch.full_like(x, float("nan")), "different functions, nan apart"),
        (in_half(lambda x, w: x @ w[:3]), "RuntimeError: "),
    ],
)
def test_what_is_wrong_fails_and_says_why(ours: Callable[..., Any], reason: str) -> None:
    found = verdict(ours)
    assert not found.passed
    assert re.search(reason, found.reason), found.reason


def test_half_precision_may_round_and_no_more() -> None:
    """An intermediate result in bfloat16 is no error when eager has one too; two per cent are."""
    rounded = lambda x, w: torch.tanh((x.float() * w.float()).to(x.dtype).float()).to(x.dtype)  # noqa: E731
    assert verdict(in_half(rounded), dtype=torch.bfloat16).passed
    assert not verdict(in_half(lambda x, w: stock(x, w) * 1.02), dtype=torch.bfloat16).passed


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1.0 if g.dtype == torch.float64 else 1.01)


def test_a_wrong_gradient_fails_though_the_output_is_right() -> None:
    found = verdict(lambda x, w: stock(_WrongGradient.apply(x), w), "backward")
    assert not found.passed
    assert found.reason.startswith("gradient of x: relative error 0.01")


def test_a_wrong_tangent_fails_though_the_output_is_right() -> None:
    def ours(x: Tensor, dx: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y, dy = dual(x, dx, w)
        return y, dy if x.dtype == torch.float64 else dy + 0.1

    found = verdict(ours, "dual")
    assert not found.passed
    assert found.reason.startswith("tangent 0: relative error")


def test_an_answer_of_zeros_proves_nothing() -> None:
    zero = lambda x, w: 0 * stock(x, w)  # noqa: E731
    case = replace(tanh_case("forward", zero), stock=zero)
    assert gate(case, CPU, torch.float32, seed=3).reason == "output 0 is zero everywhere, which checks nothing"


def test_inputs_are_drawn_anew_and_can_be_drawn_again() -> None:
    case = tanh_case()
    first, second, again = (case.inputs(CPU, torch.float32, seed=seed)["x"] for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_cotangents_are_drawn_apart_from_the_inputs() -> None:
    """The gradient of the identity is its cotangent; drawn like the input it would hide a swap of both."""
    case = tanh_case("backward", lambda x, w: x + 0 * w)
    inputs = case.inputs(CPU, torch.float32, seed=4)
    cotangent = answers(case, case.ours, inputs, 4)["gradient of x"]
    assert cotangent.std() > 0.5 and not torch.allclose(cotangent, inputs["x"])


@pytest.fixture(autouse=True)
def nothing_is_left_changed() -> Iterator[None]:
    yield
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.isfinite(torch.zeros(3)).all()


def test_strides_survive_the_cast() -> None:
    (case, *_) = [case for case in all_cases(ON_A_CPU[0]) if case.operation == "rms_norm"]
    wide, narrow = (case.inputs(CPU, dtype)["x"] for dtype in (torch.float32, torch.bfloat16))
    assert wide.stride() == narrow.stride()
    assert not narrow.is_contiguous()
    torch.testing.assert_close(narrow.float(), wide, rtol=0.01, atol=0)
