"""Steps that clip and that are skipped: the same for optimisers that do it on the device and for those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ddx.training.came import CAME
from ddx.training.optimizer import guarded_step, measure_clip


def network(fused: bool, scale: float = 1.0) -> tuple[list[Tensor], Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4), (7,))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters, AdamW(parameters, lr=0.1, fused=fused)


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
@pytest.mark.parametrize("fused", [True, False])
def test_a_clipped_step_is_torchs_own(fused: bool, max_norm: float) -> None:
    # The second step tells whether the moments saw clipped gradients: AdamW's first one ignores their length.
    clipped, optimizer = network(fused)
    expected, reference = network(False)
    for length in (1.0, 0.2):
        for ours, theirs in zip(clipped, expected, strict=True):
            theirs.grad = theirs.detach() * length
            ours.grad = theirs.detach() * length
        clip = measure_clip([parameter.grad for parameter in clipped], max_norm)
        guarded_step(optimizer, clip, torch.zeros(()))
        norm = torch.nn.utils.clip_grad_norm_(expected, max_norm)
        reference.step()
        torch.testing.assert_close(clip.norm, norm)
    for ours, theirs in zip(clipped, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_limit_no_gradient_is_scaled() -> None:
    clip = measure_clip([torch.full((4,), 1e4)], 0.0)
    assert (float(clip.norm), float(clip.divisor), float(clip.found_inf)) == (2e4, 1.0, 0.0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_changes_nothing_but_the_counter(fused: bool, bad: float) -> None:
    parameters, optimizer = network(fused)
    before = [parameter.detach().clone() for parameter in parameters]
    gradient = parameters[0].grad
    assert gradient is not None
    gradient[0, 0] = bad
    skipped = torch.zeros(())
    guarded_step(optimizer, measure_clip([parameter.grad for parameter in parameters], 1.0), skipped)
    assert skipped == 1.0
    assert all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    guarded_step(optimizer, measure_clip([parameter.grad for parameter in parameters], 1.0), skipped)
    assert skipped == 1.0
    assert all((now != then).all() for now, then in zip(parameters, before, strict=True))


def test_measuring_leaves_the_gradients_alone() -> None:
    parameters, _ = network(True, scale=100.0)
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    clip = measure_clip([parameter.grad for parameter in parameters], 1.0)
    assert clip.divisor > 1.0 and clip.found_inf == 0.0
    assert all(torch.equal(p.grad, then) for p, then in zip(parameters, before, strict=True) if p.grad is not None)


@pytest.mark.parametrize("kernel", [(), (1, 1)], ids=["matrix", "1x1 convolution"])
def test_came_takes_the_steps_of_the_published_optimiser(kernel: tuple[int, ...]) -> None:
    found = json.loads((Path(__file__).parent / "vectors" / "came.json").read_text())

    def tensors(values: dict[str, list[float]]) -> dict[str, Tensor]:
        made = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        return {**made, "matrix": made["matrix"].reshape(3, 4, *kernel)}

    parameters = {name: value.requires_grad_() for name, value in tensors(found["start"]).items()}
    optimizer = CAME(parameters.values(), **found["settings"])
    for gradients, after in zip(found["gradients"], found["after"], strict=True):
        for name, gradient in tensors(gradients).items():
            parameters[name].grad = gradient
        optimizer.step()
        for name, expected in tensors(after).items():
            torch.testing.assert_close(parameters[name].detach(), expected, rtol=1e-5, atol=1e-6)


def test_came_keeps_whole_squares_of_what_is_no_matrix() -> None:
    kernel, flat = (torch.arange(1.0, 19.0).reshape(shape).requires_grad_() for shape in ((2, 1, 3, 3), (18,)))
    optimizer = CAME([kernel, flat], lr=0.1)
    for parameter in (kernel, flat):
        parameter.grad = parameter.detach().cos()
    optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(), flat.detach())
    assert {*optimizer.state[kernel]} == {"exp_avg_sq", "exp_avg"}
