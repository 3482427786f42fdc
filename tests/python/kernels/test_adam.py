"""AdamW and RAdam in one pass over many tensors, against float64 and against torch's own optimisers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddx.kernels import adam
from ddx.kernels.adam import Rule, Updated, factors_reference, update, update_reference
from operations import GUARD, GUARD_VALUE, assert_rounded

SHAPES = [(1,), (70, 33), (16,)]
RULES = {
    "adamw": Rule(rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.1),
    "radam": Rule(rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.1, rectified=True),
    "radam, short memory": Rule(rate=1e-2, beta1=0.0, beta2=0.95, epsilon=1e-6, rectified=True),
    "adamw, no momentum": Rule(rate=1e-3, beta1=0.0, beta2=0.99, epsilon=1e-6),
}


def drawn(count: int, seed: int = 0, averages: int = 2) -> list[Updated]:
    """What is updated at step `count` + 1, between guard bands."""
    generator = torch.Generator().manual_seed(seed)

    def guarded(shape: tuple[int, ...], make: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        size = torch.Size(shape).numel()
        buffer = torch.full((size + 2 * GUARD,), GUARD_VALUE)
        inner = buffer[GUARD : GUARD + size].view(shape)
        return inner.copy_(make(torch.randn(shape, generator=generator)))

    return [
        Updated(
            weight=guarded(shape),
            gradient=guarded(shape),
            m=guarded(shape, lambda x: 0.1 * x if count else 0.0 * x),
            v=guarded(shape, lambda x: 0.01 * x.square() if count else 0.0 * x),
            count=torch.tensor(float(count)),
            averages=[guarded(shape) for _ in range(averages)],
        )
        for shape in SHAPES
    ]


def take(
    tensors: list[Updated],
    rule: Rule,
    divisor: float = 1.0,
    found_inf: float = 0.0,
    weights: tuple[float, ...] = (0.01, 0.75),
) -> None:
    update(
        tensors,
        rule,
        divisor=torch.tensor(divisor),
        found_inf=torch.tensor(found_inf),
        average_weights=weights,
    )


def named(each: Updated) -> dict[str, Tensor]:
    parts = {"weight": each.weight, "m": each.m, "v": each.v}
    return {n: p for n, p in parts.items() if p is not None} | {f"average {k}": a for k, a in enumerate(each.averages)}


def outside(value: Tensor) -> Tensor:
    return torch.cat([value._base[:GUARD], value._base[-GUARD:]])  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "count"), [("adamw", 0), ("adamw, no momentum", 2500), *(("radam", k) for k in (0, 4, 5, 2500))]
)
def test_a_step_against_float64(triton_path: None, name: str, count: int) -> None:
    rule, tensors = RULES[name], drawn(count)
    wide = [{n: v.double() for n, v in named(each).items()} for each in tensors]
    gradients = [each.gradient.double() for each in tensors if each.gradient is not None]
    take(tensors, rule, divisor=3.0)
    for each, before, gradient in zip(tensors, wide, gradients, strict=True):
        averages = [(0.01, before["average 0"]), (0.75, before["average 1"])]

        def exact(before: dict[str, Tensor] = before, gradient: Tensor = gradient, averages=averages):  # type: ignore[no-untyped-def]
            state = before["weight"], gradient / 3.0, before["m"], before["v"]
            return update_reference(*state, averages, count=count + 1, rule=rule)

        assert_rounded(named(each), exact)
        assert each.count == count + 1
        assert all((outside(value) == GUARD_VALUE).all() for value in named(each).values())


@pytest.mark.parametrize(("seed", "name"), list(enumerate(RULES)))
def test_many_steps_are_those_of_torch(triton_path: None, name: str, seed: int) -> None:
    rule, kind = RULES[name], torch.optim.RAdam if RULES[name].rectified else torch.optim.AdamW
    tensors = drawn(0, seed, averages=0)
    theirs = [each.weight.clone().double().requires_grad_() for each in tensors]
    more = {"decoupled_weight_decay": True} if rule.rectified else {}
    settings = {"lr": rule.rate, "betas": (rule.beta1, rule.beta2), "eps": rule.epsilon, "weight_decay": rule.decay}
    peer = kind(theirs, **settings, **more)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(8):
        for each, their in zip(tensors, theirs, strict=True):
            assert each.gradient is not None
            each.gradient.copy_(torch.randn(their.shape, generator=generator))
            their.grad = each.gradient.double()
        take(tensors, rule, weights=())
        peer.step()
    for each, their in zip(tensors, theirs, strict=True):
        torch.testing.assert_close(each.weight.double(), their.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(each.v.double(), peer.state[their]["exp_avg_sq"], rtol=1e-5, atol=1e-9)  # type: ignore[union-attr]


def test_a_tensor_over_several_chunks(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES["radam"]
    whole, parts = drawn(9), drawn(9)
    take(whole, rule)
    monkeypatch.setattr(adam, "_CHUNK", 1024)  # 70 x 33 is three of them
    adam._layout.cache_clear()
    take(parts, rule)
    adam._layout.cache_clear()
    for one, other in zip(whole, parts, strict=True):
        for name, value in named(one).items():
            assert torch.equal(value, named(other)[name]), name


def test_a_step_without_finite_gradients_moves_the_averages_alone(triton_path: None) -> None:
    tensors, before = drawn(4), [{n: v.clone() for n, v in named(each).items()} for each in drawn(4)]
    take(tensors, RULES["radam"], found_inf=1.0)
    for each, then in zip(tensors, before, strict=True):
        assert each.count == 4.0
        for name in ("weight", "m", "v"):
            assert torch.equal(named(each)[name], then[name])
        moved = torch.lerp(then["average 1"], then["weight"], 0.75)
        torch.testing.assert_close(each.averages[1], moved)


def test_a_tensor_without_a_gradient_is_averaged_and_stays(triton_path: None) -> None:
    tensors = drawn(4)
    lone = Updated(weight=tensors[1].weight, gradient=None, m=None, v=None, count=None, averages=tensors[1].averages)
    before, average = lone.weight.clone(), lone.averages[0].clone()
    take([tensors[0], lone, tensors[2]], RULES["adamw"])
    assert torch.equal(lone.weight, before)
    torch.testing.assert_close(lone.averages[0], torch.lerp(average, before, 0.01))


def test_an_average_that_forgets_at_once_is_the_weight(triton_path: None) -> None:
    tensors = drawn(4, averages=1)
    take(tensors, RULES["adamw"], weights=(1.0,))
    assert all(torch.equal(each.averages[0], each.weight) for each in tensors)


def test_the_first_steps_of_radam_are_not_rectified() -> None:
    rule = RULES["radam"]
    assert [factors_reference(t, rule)[1] for t in range(1, 8)] == [0.0] * 5 + [1.0] * 2
