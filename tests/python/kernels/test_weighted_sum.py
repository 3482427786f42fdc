"""Sums of samples with coefficients by sample: value and gradients, on both paths, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddx.kernels.weighted_sum import weighted_sum, weighted_sum_reference
from ddx.process import FlowProcess
from guarded_losses import launches
from operations import assert_forward_mode_is_right, assert_no_worse_than_eager, gradients, poisoned_outputs

SHAPES = [(1, 1), (2, 1023), (3, 4, 7, 11), (2, 2, 32, 33)]


def inputs(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"x{k}": torch.randn(shape, generator=generator).to(dtype) for k in range(count)}


def coefficients(batch: int, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return list(torch.randn(count, batch, generator=torch.Generator().manual_seed(1)).to(dtype))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_gradients_against_float64(path: str, shape, dtype: torch.dtype, count: int) -> None:
    given, factors = inputs(shape, count, dtype), coefficients(shape[0], count)
    ours = gradients(lambda **x: weighted_sum(list(x.values()), factors), given)
    eager = gradients(lambda **x: weighted_sum_reference(list(x.values()), factors), given)
    wide = [factor.double() for factor in factors]
    exact = gradients(
        lambda **x: weighted_sum_reference(list(x.values()), wide), {name: x.double() for name, x in given.items()}
    )
    for name, value in ours.items():
        assert_no_worse_than_eager(name, value, eager[name], exact[name])


def test_coefficients_of_float64_are_rounded_once(path: str) -> None:
    given, factors = list(inputs((3, 77), 2).values()), coefficients(3, 2)
    assert torch.equal(weighted_sum(given, [f.double() for f in factors]), weighted_sum(given, factors))


def test_one_coefficient_for_all_samples_may_be_expanded(path: str) -> None:
    given, (_, factor) = inputs((3, 77), 2), coefficients(3, 2)

    def of(first: Tensor) -> dict[str, Tensor]:
        return gradients(lambda **x: weighted_sum(list(x.values()), [first, factor]), given)

    expanded, full = of(torch.tensor(0.3).expand(3)), of(torch.full((3,), 0.3))
    assert all(torch.equal(expanded[name], full[name]) for name in full)


def test_noising_is_that_of_the_process(path: str) -> None:
    x0, noise = inputs((3, 4, 5, 5), 2).values()
    t = torch.tensor([0.1, 0.5, 1.0]).double()
    process = FlowProcess()
    ours = weighted_sum([x0, noise], [process.alpha(t), process.sigma(t)])
    torch.testing.assert_close(ours, process.add_noise(x0, noise, t))


def test_a_guided_euler_step(path: str) -> None:
    x_t, null, cond = inputs((3, 4, 5, 5), 3).values()
    step, cfg = torch.tensor([-0.1, -0.2, -0.02]).double(), torch.tensor([1.0, 4.5, 7.0]).double()
    ours = weighted_sum([x_t, null, cond], [torch.ones(3), step * (1 - cfg), step * cfg])
    scale, length = (value.float()[:, None, None, None] for value in (cfg, step))
    torch.testing.assert_close(ours, x_t + length * (null + scale * (cond - null)))


def test_the_result_has_the_dtype_of_the_widest(path: str) -> None:
    x0, x1 = inputs((3, 77), 2).values()
    half = x0.to(torch.float16).requires_grad_()
    factors = coefficients(3, 2)
    total = weighted_sum([half, x1], factors)
    assert total.dtype == torch.float32
    total.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad, factors[0].half()[:, None].expand(3, 77))


def test_halves_of_a_batch_and_of_channels_are_read_in_place(path: str) -> None:
    both = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    null, cond = both.chunk(2)
    mean, _ = both[:3].chunk(2, dim=1)
    factors = coefficients(3, 2)
    for pair in ((null, cond), (mean, mean.clone()), (null.permute(0, 2, 3, 1), cond.permute(0, 2, 3, 1))):
        torch.testing.assert_close(weighted_sum(pair, factors), weighted_sum_reference(pair, factors))


def test_gradients_go_where_they_are_needed_in_one_launch(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x0, x1, x2 = inputs((3, 77), 3).values()
    x1.requires_grad_()
    factors = [factor.requires_grad_() for factor in coefficients(3, 3)]
    g = torch.randn(3, 77)
    with launches(monkeypatch) as names:
        total = weighted_sum([x0, x1, x2], factors)
        with poisoned_outputs(monkeypatch) as allocated:
            total.backward(g)
    assert [name for name in names if name.endswith("kernel")] == ["_forward_kernel", "_backward_kernel"]
    assert sum(tensor.numel() == x1.numel() for tensor in allocated) == 1
    assert x0.grad is None and factors[1].grad is None and x1.grad is not None
    torch.testing.assert_close(x1.grad, factors[1].detach()[:, None] * g)


def test_every_element_is_written_and_none_outside(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given, factors = inputs((3, 4, 7, 77), 4), coefficients(3, 4)
    with poisoned_outputs(monkeypatch):
        found = gradients(lambda **x: weighted_sum(list(x.values()), factors), given)
    assert all(torch.isfinite(value).all() for value in found.values())


def test_repeated_runs_give_the_same_bits(path: str) -> None:
    given, factors = inputs((2, 2, 32, 33), 3, torch.float16), coefficients(2, 3)
    first, second = (gradients(lambda **x: weighted_sum(list(x.values()), factors), given) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_forward_mode_is_right(path: str) -> None:
    x0, x1 = inputs((3, 77), 2).values()
    factors = coefficients(3, 2)
    assert_forward_mode_is_right(lambda x: weighted_sum([x0, x], factors), x1)


def test_the_tangent_is_the_sum_of_tangents() -> None:
    primals, tangents = inputs((3, 7), 2).values(), inputs((3, 7), 4).values()
    primals, tangents = [x.double() for x in primals], [x.double() for x in list(tangents)[2:]]
    factors = coefficients(3, 2, torch.float64)
    _, tangent = torch.func.jvp(lambda *x: weighted_sum(x, factors), tuple(primals), tuple(tangents))
    torch.testing.assert_close(tangent, weighted_sum(tangents, factors), rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused_not_answered_with_zero(triton_path: None) -> None:
    x = torch.randn(3, 77, requires_grad=True)
    (gradient,) = torch.autograd.grad(weighted_sum([x], coefficients(3, 1)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.square().sum().backward()


def test_it_compiles_whole(path: str) -> None:
    given, factors = inputs((3, 77), 3), coefficients(3, 3)

    def function(**x: Tensor) -> Tensor:
        return weighted_sum(list(x.values()), factors)

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    ours, plain = gradients(compiled, given), gradients(function, given)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])


def test_the_reference_passes_gradcheck() -> None:
    given = [x.double().requires_grad_() for x in inputs((2, 5), 3).values()]
    factors = coefficients(2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: weighted_sum_reference(x, factors), given)


def test_wrong_arguments_are_named() -> None:
    x, factor = torch.randn(2, 3), torch.ones(2)
    with pytest.raises(ValueError, match="got 5 and 5"):
        weighted_sum([x] * 5, [factor] * 5)
    with pytest.raises(ValueError, match="got 2 and 1"):
        weighted_sum([x, x], [factor])
    with pytest.raises(ValueError, match=r"tensors\[1\] \(2, 4\)"):
        weighted_sum([x, torch.randn(2, 4)], [factor, factor])
    with pytest.raises(ValueError, match=r"coefficients\[1\] must be \[2\], got \(1,\)"):
        weighted_sum([x, x], [factor, torch.ones(1)])
