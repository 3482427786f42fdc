"""What the tests of all kernels share: what rounding may cost, poisoned outputs with guard bands, forward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GUARD = 64  # elements before and after every output
GUARD_VALUE = 77.0


DRAWS = 4
ROOM = 4.0  # times the largest of the draws: roundings that happen to point one way
SUMS = {"mm", "addmm", "bmm", "baddbmm", "sum", "mean", "var_mean", "convolution", "convolution_backward"}
MADE_OF_OTHERS = {"native_layer_norm", "native_layer_norm_backward", "_softmax", "_softmax_backward_data"}


class Rounding(TorchDispatchMode):
    """Inside, each result in float64 is off by what it may be in arithmetic of `dtype`, up or down at random.

    One result is off by half a unit in its last place. A sum of n terms, added in any order in float32 as every
    processor does, is besides off by n halves of a unit of the sum of its terms' magnitudes (Higham 2002, section 4.2).
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.unit = torch.finfo(dtype).eps / 2
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in MADE_OF_OTHERS:
            with self:
                return decomposition_table[function](*args, **kwargs)
        if name not in SUMS:
            found = function(*args, **kwargs)
            return found if function.is_view else tree_map(lambda value: self.off(value, 0.0), found)
        absolute = tree_map(lambda value: value.abs() if isinstance(value, Tensor) else value, (args, kwargs))
        error = torch.finfo(torch.float32).eps / 2 * _terms(name, args)
        found, magnitude = function(*args, **kwargs), function(*absolute[0], **absolute[1])
        if name == "var_mean":  # of centred values: the variance is its own magnitude
            magnitude = (found[0], magnitude[1])
        return tree_map(lambda value, size: None if value is None else self.off(value, error * size), found, magnitude)

    def off(self, value: Any, error: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64 or value._is_zerotensor() or value.is_meta:
            return value
        sign = torch.randint(0, 2, value.shape, generator=self.generator) * 2 - 1
        return value.add_((value.abs() * self.unit + error).nan_to_num(0.0, 0.0, 0.0) * sign)


def _terms(name: str, args: Any) -> int:
    """How many terms a result has at most."""
    if name in ("sum", "mean", "var_mean"):
        return int(args[0].numel())
    if name == "convolution":
        return int(args[1][0].numel()) + 1
    if name == "convolution_backward":
        g, _, weight, groups = *args[:3], args[-2]
        return max(weight.numel() // weight.shape[1] // groups, g.numel() // g.shape[1])
    return int(args[-1].shape[-2]) + 1


def assert_rounded(
    ours: Mapping[str, Tensor],
    exact: Callable[[], Mapping[str, Tensor]],
    *,
    inner: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
) -> None:
    """Assert that `ours` is what `exact` gives in float64, but for rounding, by name.

    How far rounding may go is arithmetic's and no processor's: `exact` runs again with every result off by as much as
    one in `inner` may be (a dtype, or one by name), and what comes out is that far off. One unit in the last place of
    the result's own dtype is added.
    """
    of = inner if callable(inner) else lambda name: inner
    with sdpa_kernel(SDPBackend.MATH):
        right = exact()
        assert ours.keys() == right.keys()
        spread = dict.fromkeys(right, 0.0)
        for dtype in {of(name) for name in right}:
            for seed in range(DRAWS):
                with Rounding(dtype, seed):
                    drawn = exact()
                for name in right:
                    if of(name) == dtype:
                        spread[name] = max(spread[name], (drawn[name] - right[name]).abs().max().item())
    for name, value in ours.items():
        assert value.shape == right[name].shape, f"{name}: {tuple(value.shape)} is not {tuple(right[name].shape)}"
        assert torch.isfinite(value).all(), f"{name} is not finite"
        own = torch.finfo(value.dtype)
        error = (value.double() - right[name]).abs().max().item()
        allowed = ROOM * spread[name] + own.eps * right[name].abs().max().item() + own.eps * own.tiny
        assert error <= allowed, f"{name}: error {error:.3g}, by rounding up to {allowed:.3g}"


def gradients(function: Callable[..., Any], inputs: dict[str, Tensor], *, seed: int = 7) -> dict[str, Tensor]:
    """Return the outputs ("output 0", ...) and the gradient of each float input by name, for one random cotangent."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    named = {f"output {number}": output.detach() for number, output in enumerate(outputs)}
    return {**named, **{f"gradient of {name}": value for name, value in zip(leaves, found, strict=True)}}


@contextmanager
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Fill what torch.empty and torch.empty_like return with NaN, between guard bands that nobody may write to.

    An element that a kernel forgets stays NaN, for the test to find; the bands are checked at the end. Yields the list
    of what was allocated.
    """
    real_empty = torch.empty
    buffers: list[tuple[Tensor, int]] = []
    given: list[Tensor] = []

    def empty(*shape: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
        size = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point or torch.device(device or "cpu").type == "meta":
            return real_empty(size, dtype=dtype, device=device, **options)
        count = torch.Size(size).numel()
        buffer = real_empty(count + 2 * GUARD, dtype=dtype, device=device).fill_(GUARD_VALUE)
        inner = buffer[GUARD : GUARD + count]
        inner.fill_(float("nan"))
        buffers.append((buffer, count))
        given.append(inner)
        return inner.view(size)

    def empty_like(other: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return empty(other.shape, dtype=dtype or other.dtype, device=other.device)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield given
    assert buffers, "nothing was allocated: is this the kernel's path?"
    for buffer, count in buffers:
        bands = torch.cat([buffer[:GUARD], buffer[GUARD + count :]])
        assert (bands == GUARD_VALUE).all(), "written outside of an output"


def assert_forward_mode_is_right(function: Callable[[Tensor], Any], x: Tensor) -> None:
    """Assert that no way of asking for a forward-mode derivative gets a silent zero: the right one, or an error."""
    generator = torch.Generator().manual_seed(11)
    direction = torch.randn(x.shape, generator=generator).to(x.dtype)
    step = 1e-3
    wide = lambda value: torch.cat([part.flatten() for part in _tuple(function(value))])  # noqa: E731
    difference = (wide(x + step * direction) - wide(x - step * direction)) / (2 * step)
    assert difference.abs().max() > 0, "this direction tells nothing"

    def tangent(value: Tensor) -> Any:
        return torch.func.jvp(function, (value,), (direction,))[1]

    for ask in (tangent, torch.compile(tangent, backend="eager"), torch.compile(tangent, backend="aot_eager")):
        torch._dynamo.reset()
        try:
            answer = torch.cat([part.flatten() for part in _tuple(ask(x))])
        except NotImplementedError as error:
            assert "dual" in str(error) or "reference" in str(error)
            continue
        torch.testing.assert_close(answer, difference, rtol=0.02, atol=0.02 * difference.abs().max().item())


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
