"""What a case must pass before it is timed: the right answer, on inputs that were drawn for this check.

The exact answer is ours in float64, which takes the plain path; `stock` in float64 must agree with it, or the two do
not compute the same thing. An error is ||out - exact|| / ||exact||, and the largest difference over the largest value.
Ours may have twice the error of plain torch in the same dtype, and a few units in the last place of the answer's dtype.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddx.bench.calls import Function
from ddx.bench.case import Case, as_tuple
from ddx.bench.timing import check_alive, in_a_line

TIMES_EAGER = 2.0
# Units in the last place: a value that is rounded once is off by half a unit at most, and by a quarter in the root mean
# square. Sums in float32, where eager may be right by chance, are off by a few, whatever their order.
ROUNDING = {"relative": 0.25, "largest": 1.0}
ROUNDING_OF_SUMS = 8.0
# Stock modules may hold intermediate values in float32 whatever their inputs: so far apart can two right answers be.
SAME_FUNCTION = 1e-3


@dataclass(frozen=True, kw_only=True)
class Error:
    """The errors of one output, gradient or tangent, and those of plain torch in the same dtype."""

    name: str
    relative: float
    eager_relative: float
    largest: float
    eager_largest: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a case may be timed; `reason` says why not. `seed` draws the same inputs again."""

    passed: bool
    seed: int
    reason: str = ""
    errors: tuple[Error, ...] = ()


def gate(
    case: Case, device: torch.device, dtype: torch.dtype, seed: int, function: Callable[..., Any] | None = None
) -> Verdict:
    """Return whether ours may be timed, or `function` in its place; no error escapes but a lost GPU.

    Ours is run on memory filled with NaN, and twice: the same bits are asked for.
    """
    try:
        return _gate(case, device, dtype, seed, function)
    except Exception as error:  # a case that cannot run has failed, and the others go on
        check_alive(device, error)
        return Verdict(passed=False, seed=seed, reason=in_a_line(error))


def _gate(case: Case, device: torch.device, dtype: torch.dtype, seed: int, function: Function | None) -> Verdict:
    inputs = case.inputs(device, dtype, seed=seed)
    if function is None:
        with _poisoned_memory():
            found, again = (answers(case, case.ours, inputs, seed) for _ in range(2))
    else:  # something to compare with, of which only the answer matters
        found = again = answers(case, function, inputs, seed)
    plain = answers(case, case.eager, inputs, seed)
    exact_inputs = {name: _wide(value) for name, value in inputs.items()}
    exact = answers(case, case.ours, exact_inputs, seed, dtype)
    stock = answers(case, case.eager, exact_inputs, seed, dtype)
    refused = _not_comparable(found, again, plain, exact, stock)
    if refused:
        return Verdict(passed=False, seed=seed, reason=refused)
    errors = tuple(_error(name, found[name], plain[name], exact[name]) for name in exact)
    reason = "; ".join(filter(None, (_judge(error, plain[error.name].dtype) for error in errors)))
    return Verdict(passed=not reason, seed=seed, reason=reason, errors=errors)


def answers(
    case: Case,
    function: Function,
    inputs: Mapping[str, Tensor],
    seed: int,
    rounded_to: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Return outputs ("output 0", ...), and tangents or the gradients for one random cotangent, by name.

    `rounded_to` is the dtype of the run that this one is compared with: cotangents are rounded to it first.
    """
    if case.mode == "backward":
        leaves, outputs = case.differentiable_outputs(function, inputs)
        cotangents = [_cotangent(output, seed + 1000 + number, rounded_to) for number, output in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, leaves, cotangents)
        named = {f"output {number}": output.detach() for number, output in enumerate(outputs)}
        return named | {f"gradient of {name}": value for name, value in zip(case.varied, gradients, strict=True)}
    with torch.no_grad():
        outputs = list(as_tuple(function(**inputs)))
    count = len(outputs) // 2 if case.mode == "dual" else len(outputs)
    names = [f"output {number}" for number in range(count)] + [f"tangent {number}" for number in range(count)]
    return dict(zip(names, outputs, strict=False))


def _not_comparable(
    found: Mapping[str, Tensor],
    again: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    stock: Mapping[str, Tensor],
) -> str:
    """Return why the answers cannot be judged by their errors, or nothing."""
    if not found.keys() == plain.keys() == exact.keys() == stock.keys():
        return f"ours returns {', '.join(found)}; stock returns {', '.join(plain)}"
    for name, mine in found.items():
        theirs = plain[name]
        if mine.shape != theirs.shape:
            return f"{name} is {list(mine.shape)}, stock's is {list(theirs.shape)}"
        if mine.dtype != theirs.dtype:
            return f"{name} is {_short(mine.dtype)}, stock's is {_short(theirs.dtype)}"
        if not torch.equal(torch.nan_to_num(mine), torch.nan_to_num(again[name])):
            return f"{name} is not the same in two runs"
        if not exact[name].any():
            return f"{name} is zero everywhere, which checks nothing"
        apart = _relative(stock[name], exact[name])
        if not apart <= SAME_FUNCTION:
            return f"{name}: ours and stock are different functions, {apart:.2g} apart in float64"
    return ""


def _error(name: str, found: Tensor, plain: Tensor, exact: Tensor) -> Error:
    return Error(
        name=name,
        relative=_relative(found, exact),
        eager_relative=_relative(plain, exact),
        largest=_largest(found, exact),
        eager_largest=_largest(plain, exact),
    )


def _judge(error: Error, dtype: torch.dtype) -> str:
    """Return what is wrong with one answer, or nothing. An error that is not finite is wrong whatever eager's is."""
    sums = ROUNDING_OF_SUMS if dtype in (torch.float32, torch.float64) else 1.0
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    for kind, found, plain in (
        ("relative", error.relative, error.eager_relative),
        ("largest", error.largest, error.eager_largest),
    ):
        allowed = TIMES_EAGER * plain + ROUNDING[kind] * sums * eps
        if not math.isfinite(found):
            return f"{error.name} is not finite"
        if not found <= allowed:
            return f"{error.name}: {kind} error {found:.2g}, allowed {allowed:.2g} (plain torch {plain:.2g})"
    return ""


def _relative(found: Tensor, exact: Tensor) -> float:
    wide = exact.double()
    return _ratio((found.double() - wide).norm().item(), wide.norm().item())


def _largest(found: Tensor, exact: Tensor) -> float:
    wide = exact.double()
    return _ratio((found.double() - wide).abs().max().item(), wide.abs().max().item())


def _ratio(error: float, size: float) -> float:
    """The error itself where the exact answer is zero."""
    return error / size if size else error


def _cotangent(output: Tensor, seed: int, rounded_to: torch.dtype | None) -> Tensor:
    generator = torch.Generator(device=output.device).manual_seed(seed)  # not the inputs' own: they would be equal
    drawn = torch.randn(output.shape, generator=generator, device=output.device)
    return drawn.to(rounded_to or output.dtype).to(output.dtype)


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element which no kernel writes is seen."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic  # a module that makes itself
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
