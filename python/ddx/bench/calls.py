"""What is called when a case is checked or timed: ours, or what stands in its place without ddx."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ddx.bench.case import Case
from ddx.kernels.launch import Launch

Function = Callable[..., Any]


def eager(case: Case) -> Function:
    """Return what runs without ddx in the case's mode and takes its inputs; tangents by `torch.func.jvp`."""
    return case.stock_dual if case.mode == "dual" else case.stock


def compiled(case: Case) -> Function:
    """Return the same through `torch.compile`, for one set of shapes; it compiles when it is first called."""
    torch._dynamo.reset()  # or the shapes of an earlier case make these dynamic ones, or it gives up after eight
    function: Function = torch.compile(eager(case), dynamic=False)
    return function


def prepare(
    case: Case, function: Function, inputs: Mapping[str, Tensor], *, both_passes: bool = False
) -> Callable[[], Any]:
    """Return the call to be timed, without arguments and to be called without gradients.

    Of a backward case that is the backward pass alone: the forward pass is run here, once, and its graph kept. With
    `both_passes` it is the forward pass and the backward pass.
    """
    if case.mode != "backward":
        return lambda: function(**inputs)
    leaves, outputs = differentiable_outputs(case, function, inputs)
    cotangents = [torch.empty_like(output).normal_() for output in outputs]
    if not both_passes:
        return lambda: torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)

    def train() -> tuple[Tensor, ...]:
        leaves, outputs = differentiable_outputs(case, function, inputs)
        return torch.autograd.grad(outputs, leaves, cotangents)

    return train


def differentiable_outputs(
    case: Case, function: Function, inputs: Mapping[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return fresh leaves for the inputs that are varied, and the outputs that depend on them."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in case.varied}
    with torch.enable_grad():
        outputs = as_tuple(function(**{**inputs, **leaves}))
    return list(leaves.values()), [output for output in outputs if output.requires_grad]


@contextmanager
def launches_asked() -> Iterator[list[str]]:
    """Yield the names of the launches whose options are asked for inside, each once, in their order."""
    asked: list[str] = []
    answer = Launch.options

    def note(self: Launch, device: torch.device) -> dict[str, Any]:
        if self.name not in asked:
            asked.append(self.name)
        return answer(self, device)

    with mock.patch.object(Launch, "options", note):
        yield asked


def without_tangents(case: Case, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that `stock` takes."""
    tangents = {"d" + name for name in case.varied} if case.mode == "dual" else set[str]()
    return {name: value for name, value in inputs.items() if name not in tangents}


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    """Return one output or several as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
