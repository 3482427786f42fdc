"""RMSNorm: output, gradients and tangent, on both paths, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddx.kernels.rms_norm import rms_norm, rms_norm_dual, rms_norm_dual_reference, rms_norm_reference
from operations import (
    assert_forward_mode_is_right,
    assert_rounded,
    gradients,
    poisoned_outputs,
)

CASES = [  # shape, dtype, with a weight
    ((1, 1), torch.float16, True),
    ((3, 77), torch.float32, True),
    ((2, 5, 96), torch.bfloat16, False),
    ((2, 33, 160), torch.float16, False),
    ((2, 33, 160), torch.bfloat16, True),
]
every_case = pytest.mark.parametrize(("shape", "dtype", "weighted"), CASES)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, *, weighted: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {"x": torch.randn(shape, generator=generator).to(dtype)}
    if weighted:
        drawn["weight"] = (1 + 0.3 * torch.randn(shape[-1], generator=generator)).to(dtype)
    return drawn


def wide(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in values.items()}


@every_case
def test_output_and_gradients_against_float64(path: str, shape, dtype: torch.dtype, weighted: bool) -> None:
    given = inputs(shape, dtype, weighted=weighted)
    ours = gradients(rms_norm, given)
    assert {value.dtype for value in ours.values()} == {dtype}
    assert_rounded(ours, lambda: gradients(rms_norm_reference, wide(given)))


@every_case
def test_tangent_against_float64(path: str, shape, dtype: torch.dtype, weighted: bool) -> None:
    given = inputs(shape, dtype, weighted=weighted)
    given["dx"] = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y, dy = rms_norm_dual(**given)
    assert y.dtype == dy.dtype == dtype
    assert_rounded(
        {"y": y, "dy": dy}, lambda: dict(zip(("y", "dy"), rms_norm_dual_reference(**wide(given)), strict=True))
    )


def test_the_dual_reference_is_the_forward_derivative() -> None:
    given = wide(inputs((3, 77), torch.float32))
    x, weight = given["x"], given["weight"]
    dx = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, dy = torch.func.jvp(lambda x: rms_norm_reference(x, weight), (x,), (dx,))
    torch.testing.assert_close(rms_norm_dual_reference(x, dx, weight), (y, dy), rtol=1e-12, atol=1e-12)


def test_rows_of_a_packed_tensor_are_read_in_place(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.randn(2, 5, 3, 96, generator=torch.Generator().manual_seed(2))
    x, dx = packed[:, :, 0], packed[:, :, 1]
    with poisoned_outputs(monkeypatch):
        y = rms_norm(x)
        dual = rms_norm_dual(x, dx)
    torch.testing.assert_close(y, rms_norm_reference(x))
    torch.testing.assert_close(dual, rms_norm_dual_reference(x, dx))


def test_every_element_is_written_and_none_outside(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs((3, 7, 77), torch.float32)
    with poisoned_outputs(monkeypatch):
        found = gradients(rms_norm, given)
        found |= dict(enumerate(rms_norm_dual(given["x"], given["x"], given["weight"])))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_repeated_runs_give_the_same_bits(triton_path: None) -> None:
    given = inputs((4, 9, 96), torch.float16)
    first, second = gradients(rms_norm, given), gradients(rms_norm, given)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_frozen_weight_gets_no_gradient_and_costs_none(triton_path: None) -> None:
    given = inputs((4, 96), torch.float32)
    x = given["x"].requires_grad_()
    rms_norm(x, given["weight"]).sum().backward()
    assert x.grad is not None and given["weight"].grad is None


def test_forward_mode_is_right(triton_path: None) -> None:
    given = inputs((3, 77), torch.float32)
    assert_forward_mode_is_right(lambda x: rms_norm(x, given["weight"]), given["x"])


def test_a_second_derivative_is_refused_not_answered_with_zero(triton_path: None) -> None:
    x = torch.randn(3, 77, requires_grad=True)
    (gradient,) = torch.autograd.grad(rms_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.square().sum().backward()


def test_it_compiles_whole(path: str) -> None:
    given = inputs((3, 77), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(rms_norm, backend="aot_eager", fullgraph=True)
    ours, plain = gradients(compiled, given), gradients(rms_norm, given)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])


def test_the_reference_passes_gradcheck() -> None:
    given = {name: value.requires_grad_() for name, value in wide(inputs((2, 5), torch.float32)).items()}
    assert torch.autograd.gradcheck(rms_norm_reference, tuple(given.values()))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"weight must be \[4\]"):
        rms_norm(torch.randn(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match="not be empty"):
        rms_norm(torch.randn(0, 4))
    with pytest.raises(ValueError, match="one shape"):
        rms_norm_dual(torch.randn(2, 4), torch.randn(3, 4))
