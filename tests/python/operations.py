"""What the tests of all kernels share: tolerances against float64, poisoned outputs with guard bands, forward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

GUARD = 64  # elements before and after every output
GUARD_VALUE = 77.0


def assert_no_worse_than_eager(name: str, ours: Tensor, eager: Tensor, exact: Tensor, *, absolute: float = 0.0) -> None:
    """Assert that the largest error against float64 is at most twice that of plain torch in the same dtype.

    One unit in the last place of the dtype is added at the largest value, which a different order of rounding may
    cost, and `absolute`.
    """
    assert ours.shape == exact.shape, f"{name}: {tuple(ours.shape)} is not {tuple(exact.shape)}"
    assert ours.dtype == eager.dtype, f"{name}: {ours.dtype} is not {eager.dtype}"
    assert torch.isfinite(ours).all(), f"{name} is not finite"
    error, eager_error = ((value.double() - exact).abs().max().item() for value in (ours, eager))
    allowed = 2 * eager_error + torch.finfo(ours.dtype).eps * exact.abs().max().item() + absolute
    assert error <= allowed, f"{name}: error {error:.3g}, plain torch {eager_error:.3g}, allowed {allowed:.3g}"


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
