"""A number a row as one more input of a denoiser: an embedding of it, added to the time embedding, and folded away.

The embedder's last layer starts at zero, so a network starts as the teacher exactly; its first one does not, or else
only the last bias would ever move. For one fixed number the embedding is a constant, and adding it to the bias of the
layer that it enters at gives a network of the teacher's own class (equal to about 3e-7 in float32).

A denoiser that takes guidance itself has a bare :class:`FedNumber` of the same name instead, which its adapter reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddx.device import send

GUIDANCE = "guidance_embedder"


class FedNumber(nn.Module):
    """The numbers that :func:`scalar_input` feeds to a network; without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor | None = None  # the numbers [B] of the forward pass under way, see `scalar_input`
        self.tangent: Tensor | None = None  # their derivative [B] along a dual forward's direction
        self.move: Tensor | None = None  # how far along it: 0 with tangent 1, inside a dual forward

    def number(self) -> Tensor | None:
        """Return the numbers, float32 `[B]` or `[1]`, None where none were fed."""
        if self.value is None or self.move is None or self.tangent is None:
            return self.value
        return self.value + self.move * self.tangent


class ScalarEmbedder(FedNumber):
    """Fourier features of a number, then two linears; the output is 0 until the last one is trained."""

    frequencies: Tensor

    def __init__(
        self,
        width: int,
        *,
        num_features: int = 64,
        highest: float = 2.0,
        lowest: float = 0.002,
        vanishes_at_zero: bool = False,
    ) -> None:
        """Take the width of the time embedding; frequencies, in radians a unit of the number, fall to the lowest.

        With `vanishes_at_zero` the embedding is multiplied by the number.
        """
        super().__init__()
        steps = torch.linspace(math.log(highest), math.log(lowest), num_features // 2)
        self.register_buffer("frequencies", steps.exp(), persistent=False)
        self.hidden = nn.Linear(num_features, width)
        self.last = nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.vanishes_at_zero = vanishes_at_zero

    def forward(self, value: Tensor) -> Tensor:
        """Return embeddings `[B, width]` in the layers' dtype for numbers `[B]`."""
        number = value.float().reshape(-1, 1)
        angles = number * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.hidden.weight.dtype)
        embedding: Tensor = self.last(nn.functional.silu(self.hidden(features)))
        return number.to(embedding.dtype) * embedding if self.vanishes_at_zero else embedding

    def current(self) -> Tensor:
        """Return the embedding of the numbers that were fed. RuntimeError if none were."""
        value = self.number()
        if value is None:
            raise RuntimeError("this network takes one more number: call it inside the embedder's input context")
        embedding: Tensor = self(value)
        return embedding


class _AddEmbedding:
    """The hook that adds the embedding; an object and no closure, so that a deep copy refers to the copied embedder."""

    def __init__(self, embedder: ScalarEmbedder) -> None:
        self.embedder = embedder

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.embedder.current().to(output.dtype)


def add_embedder(network: nn.Module, linear: nn.Module, name: str, embedder: ScalarEmbedder) -> None:
    """Make `embedder` the submodule `name` of `network`; what it is fed is added to the output of `linear`."""
    network.add_module(name, embedder)
    linear.register_forward_hook(_AddEmbedding(embedder))


def find_number(network: nn.Module, name: str) -> FedNumber | None:
    """Return the input of that name, also through a data-parallel wrapper; None if the network has none."""
    found = getattr(getattr(network, "module", network), name, None)
    return found if isinstance(found, FedNumber) else None


def find_embedder(network: nn.Module, name: str) -> ScalarEmbedder | None:
    """Return the embedder of that name, as :func:`find_number` does; None for a network that takes it itself too."""
    found = find_number(network, name)
    return found if isinstance(found, ScalarEmbedder) else None


@contextmanager
def scalar_input(
    network: nn.Module, name: str, value: Tensor | float, tangent: Tensor | float | None = None
) -> Iterator[None]:
    """Feed a number, or `[B]`, to the input `name` in the forward passes inside; without such an input it is ignored.

    tangent: the number's derivative along the direction of :meth:`Teacher.predict_dual`, None for 0.
    """
    fed = find_number(network, name)
    if fed is None:
        yield
        return
    before = fed.value, fed.tangent
    device = next(network.parameters()).device
    fed.value = _numbers(value, device)
    fed.tangent = None if tangent is None else _numbers(tangent, device)
    try:
        yield
    finally:
        fed.value, fed.tangent = before


def _numbers(value: Tensor | float, device: torch.device) -> Tensor:
    """Return a number as float32 `[1]`, or one a row, `[B]`, without waiting for the device."""
    if isinstance(value, Tensor):
        return send(value, device).float().reshape(-1)
    return torch.full((1,), value, dtype=torch.float32, device=device)


@contextmanager
def moved_inputs(network: nn.Module, move: Tensor) -> Iterator[None]:
    """Move every fed number by `move` times its tangent; with a dual `move` the embeddings are dual numbers too."""
    numbers = [module for module in network.modules() if isinstance(module, FedNumber)]
    for fed in numbers:
        fed.move = move
    try:
        yield
    finally:
        for fed in numbers:
            fed.move = None
