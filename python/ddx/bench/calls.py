"""What is called when a case is timed, compiled or tuned, and which launches it asks for."""

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


def compiled(case: Case) -> Function:
    """Return eager through `torch.compile`, for one set of shapes; it compiles when it is first called."""
    torch._dynamo.reset()  # or the shapes of an earlier case make these dynamic ones, or it gives up after eight
    function: Function = torch.compile(case.eager, dynamic=False)
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
    cotangents: list[Tensor] = []

    def forward() -> tuple[list[Tensor], list[Tensor]]:
        leaves, outputs = case.differentiable_outputs(function, inputs)
        cotangents[:] = cotangents or [torch.empty_like(output).normal_() for output in outputs]
        return leaves, outputs

    if not both_passes:
        leaves, outputs = forward()
        return lambda: torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)

    def train() -> tuple[Tensor, ...]:
        leaves, outputs = forward()
        return torch.autograd.grad(outputs, leaves, cotangents)

    return train


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
