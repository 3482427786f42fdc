"""What holds for every loss: it drops samples that are not finite, launches little, and writes what is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.kernels.consistency import consistency_loss, guarded_consistency_loss
from ddx.kernels.dmd import dmd_loss, guarded_dmd_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.kernels.scm_tangent import guarded_scm_loss, scm_loss
from ddx.kernels.sid import guarded_sid_loss, sid_loss
from guarded_losses import launches, loss_and_gradients
from operations import poisoned_outputs


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A loss: its inputs `[B, ...]` and `[B]`, those that it is differentiated by, and its launches both ways."""

    loss: Callable[..., Tensor]
    guarded: Callable[..., GuardedLoss]
    samples: tuple[str, ...]
    per_sample: tuple[str, ...] = ()
    varied: tuple[str, ...]
    launches: tuple[str, ...] = ("_terms_kernel", "_totals_kernel", "_scale_kernel")

    def inputs(self, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name in self.samples}
        return drawn | {name: 0.2 + torch.rand(shape[0], generator=generator) for name in self.per_sample}


SCORES = ("y_teacher", "y_fake", "x")
KINDS = {
    "sid": Kind(loss=sid_loss, guarded=guarded_sid_loss, samples=SCORES, varied=SCORES),
    "dmd": Kind(loss=dmd_loss, guarded=guarded_dmd_loss, samples=SCORES, varied=("x",)),
    "diff_instruct": Kind(
        loss=functools.partial(dmd_loss, normalise=False),
        guarded=functools.partial(guarded_dmd_loss, normalise=False),
        samples=SCORES,
        varied=("x",),
    ),
    "huber": Kind(
        loss=consistency_loss,
        guarded=guarded_consistency_loss,
        samples=("prediction", "target"),
        per_sample=("weight",),
        varied=("prediction",),
    ),
    "squared": Kind(
        loss=functools.partial(consistency_loss, c=None),
        guarded=functools.partial(guarded_consistency_loss, c=None),
        samples=("prediction", "target"),
        varied=("prediction",),
    ),
    "scm": Kind(
        loss=functools.partial(scm_loss, warmup=0.7),
        guarded=functools.partial(guarded_scm_loss, warmup=0.7),
        samples=("output", "target_output", "teacher_tangent", "jvp", "x_t"),
        per_sample=("t", "log_weight"),
        varied=("output", "log_weight"),
        launches=("_sums_kernel", "_terms_kernel", "_scale_kernel"),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_samples_that_are_not_finite_are_dropped_and_no_bit_of_the_others_changes(
    path: str, kind: Kind, dtype: torch.dtype
) -> None:
    names = kind.samples + kind.per_sample
    causes = [(name, value) for name in names for value in (float("nan"), float("inf"))]
    given = kind.inputs(len(causes) + 2, 2, 3, 181, dtype=dtype)
    clean = loss_and_gradients(kind.loss, given, kind.varied)
    assert not kind.guarded(**given).dropped.any() and all(torch.isfinite(value).all() for value in clean.values())
    broken = {name: value.clone() for name, value in given.items()}
    for sample, (name, value) in enumerate(causes, start=1):
        # an infinite u is a weight of 0, which is finite times any error
        broken[name][sample].view(-1)[-1] = -value if name == "log_weight" else value
    found = kind.guarded(**broken)
    others = torch.tensor([True, *[False] * len(causes), True])
    assert found.dropped.dtype == torch.bool and torch.equal(found.dropped, ~others), causes
    for label, tensor in loss_and_gradients(kind.loss, broken, kind.varied).items():
        assert (tensor[~others] == 0).all(), label
        assert torch.equal(tensor[others], clean[label][others]), label


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_dropped_sample_has_no_gradient_whatever_comes_back(path: str) -> None:
    target = torch.zeros(2, 77)
    target[1, 3] = float("nan")
    prediction = torch.ones(2, 77, requires_grad=True)
    consistency_loss(prediction, target).log().sum().backward()  # the logarithm of 0 sends infinity back
    assert prediction.grad is not None and (prediction.grad[1] == 0).all() and (prediction.grad[0] > 0).all()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_what_overflows_is_dropped(path: str) -> None:
    prediction = torch.tensor([[1e30, 0.0], [1.0, 0.0]], requires_grad=True)
    loss, dropped = guarded_consistency_loss(prediction, torch.zeros(2, 2), c=None)
    loss.sum().backward()
    assert dropped.tolist() == [True, False] and loss.tolist() == [0.0, 0.5]
    assert prediction.grad is not None and prediction.grad.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_every_element_is_written_and_none_outside(
    triton_path: None, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with poisoned_outputs(monkeypatch):
        found = loss_and_gradients(kind.loss, kind.inputs(3, 4, 7, 77), kind.varied)
    assert all(torch.isfinite(value).all() for value in found.values())


def test_frozen_inputs_cost_nothing(triton_path: None, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    given = kind.inputs(3, 1237)
    for wanted in ([], *([name] for name in kind.varied), list(kind.varied)):
        leaves = {name: value.clone().requires_grad_(name in wanted) for name, value in given.items()}
        with poisoned_outputs(monkeypatch) as allocated:
            rows = kind.loss(**leaves)
        derivatives = sum(tensor.numel() == 3 * 1237 for tensor in allocated)
        assert derivatives == sum(leaves[name].ndim == 2 for name in wanted)
        if wanted:
            rows.sum().backward()
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name in wanted), name
            assert leaf.grad is None or torch.isfinite(leaf.grad).all(), name
    with torch.no_grad(), poisoned_outputs(monkeypatch) as allocated:
        kind.loss(**leaves)
    assert not any(tensor.numel() == 3 * 1237 for tensor in allocated)


def test_constants_get_no_gradient(path: str, kind: Kind) -> None:
    leaves = {name: value.requires_grad_() for name, value in kind.inputs(3, 7).items()}
    kind.loss(**leaves).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == set(kind.varied)


def test_nothing_else_is_launched(triton_path: None, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = {name: value.requires_grad_() for name, value in kind.inputs(3, 4, 7, 11).items()}
    g = torch.ones(3)
    with launches(monkeypatch) as names:
        torch.autograd.grad(kind.loss(**leaves), [leaves[name] for name in kind.varied], g)
    assert tuple(names) == kind.launches


def test_repeated_runs_give_the_same_bits(triton_path: None, kind: Kind) -> None:
    given = kind.inputs(2, 2, 32, 33, dtype=torch.float16)
    first, second = (loss_and_gradients(kind.loss, given, kind.varied) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_compiles_whole(triton_path: None, kind: Kind) -> None:
    given = kind.inputs(3, 77)
    torch._dynamo.reset()
    compiled = torch.compile(kind.loss, backend="aot_eager", fullgraph=True)
    ours, plain = (loss_and_gradients(loss, given, kind.varied) for loss in (compiled, kind.loss))
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])


def test_the_guard_of_the_reference_compiles_whole() -> None:
    given = KINDS["huber"].inputs(3, 77)
    torch._dynamo.reset()
    compiled = torch.compile(guarded_consistency_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given), guarded_consistency_loss(**given))


def test_forward_mode_is_refused_not_answered_with_zero(kind: Kind) -> None:
    given, (varied, *_) = kind.inputs(3, 7), kind.varied
    rest = {name: value for name, value in given.items() if name != varied}

    def tangent(x: Tensor) -> Any:
        return torch.func.jvp(lambda value: kind.loss(**rest, **{varied: value}), (x,), (torch.ones_like(x),))

    for ask in (tangent, torch.compile(tangent, backend="eager"), torch.compile(tangent, backend="aot_eager")):
        torch._dynamo.reset()
        with pytest.raises(NotImplementedError, match="_reference"):
            ask(given[varied])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        kind.loss(**given)


def test_a_second_derivative_is_refused_not_answered_with_zero(triton_path: None, kind: Kind) -> None:
    for last in (torch.sum, lambda rows: rows.square().sum()):
        leaves = {name: value.requires_grad_(name in kind.varied) for name, value in kind.inputs(3, 7).items()}
        for name in kind.varied:
            (gradient,) = torch.autograd.grad(last(kind.loss(**leaves)), leaves[name], create_graph=True)
            with pytest.raises(RuntimeError, match="autograd"):
                gradient.square().sum().backward()


def test_strided_inputs(path: str, kind: Kind) -> None:
    given = kind.inputs(3, 6, 5, 7)
    straight = loss_and_gradients(kind.loss, given, kind.varied)

    def of(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        changed = {name: change(value) if value.ndim > 1 else value for name, value in given.items()}
        leaves = [changed[name].requires_grad_() for name in kind.varied]
        rows = kind.loss(**changed)
        found = torch.autograd.grad(rows, leaves, torch.linspace(1, 2, 3))
        return {"loss": rows.detach()} | {f"gradient of {n}": g for n, g in zip(kind.varied, found, strict=True)}

    for name, value in of(lambda x: torch.cat([x, x], dim=1).chunk(2, dim=1)[1]).items():
        assert torch.equal(value, straight[name]), name
    for name, value in of(lambda x: x.permute(0, 2, 3, 1)).items():
        expected = straight[name] if value.ndim == 1 else straight[name].permute(0, 2, 3, 1)
        torch.testing.assert_close(value, expected)


def test_losses_of_different_dtypes(path: str, kind: Kind) -> None:
    given = kind.inputs(3, 77)
    first = next(iter(given))
    given[first] = given[first].to(torch.float16)
    wide = {name: value.double() for name, value in given.items()}
    ours, exact = (loss_and_gradients(kind.loss, values, kind.varied) for values in (given, wide))
    for name, value in ours.items():
        assert value.dtype == (torch.float32 if name == "loss" else given[name.removeprefix("gradient of ")].dtype)
        torch.testing.assert_close(value.double(), exact[name], rtol=2e-3, atol=2e-3)
