"""A number a row as one more input of a denoiser: an embedding of it, added to the time embedding, and folded away.

The embedder's last layer starts at zero, so a network starts as the teacher exactly; its first one does not, or else
only the last bias would ever move. For one fixed number the embedding is a constant, and adding it to the bias of the
layer that it enters at gives a network of the teacher's own class (equal to about 3e-7 in float32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddx.device import send


class ScalarEmbedder(nn.Module):
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
        self.value: Tensor | None = None  # the numbers [B] of the forward pass under way, see `scalar_input`
        self.tangent: Tensor | None = None  # their derivative [B] along a dual forward's direction
        self.move: Tensor | None = None  # how far along it: 0 with tangent 1, inside a dual forward

    def forward(self, value: Tensor) -> Tensor:
        """Return embeddings `[B, width]` in the layers' dtype for numbers `[B]`."""
        number = value.float().reshape(-1, 1)
        angles = number * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.hidden.weight.dtype)
        embedding: Tensor = self.last(nn.functional.silu(self.hidden(features)))
        return number.to(embedding.dtype) * embedding if self.vanishes_at_zero else embedding

    def current(self) -> Tensor:
        """Return the embedding of the numbers that were fed. RuntimeError if none were."""
        if self.value is None:
            raise RuntimeError("this network takes one more number: call it inside the embedder's input context")
        value = self.value
        if self.move is not None and self.tangent is not None:
            value = value + self.move * self.tangent
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


def find_embedder(network: nn.Module, name: str) -> ScalarEmbedder | None:
    """Return the embedder of that name, also through a data-parallel wrapper; None if the network has none."""
    found = getattr(getattr(network, "module", network), name, None)
    return found if isinstance(found, ScalarEmbedder) else None


@contextmanager
def scalar_input(
    network: nn.Module, name: str, value: Tensor | float, tangent: Tensor | float | None = None
) -> Iterator[None]:
    """Feed a number, or `[B]`, to the embedder `name` in the forward passes inside; without the embedder it is ignored.

    tangent: the number's derivative along the direction of :meth:`Teacher.predict_dual`, None for 0.
    """
    embedder = find_embedder(network, name)
    if embedder is None:
        yield
        return
    before = embedder.value, embedder.tangent
    device = embedder.last.weight.device
    embedder.value = _numbers(value, device)
    embedder.tangent = None if tangent is None else _numbers(tangent, device)
    try:
        yield
    finally:
        embedder.value, embedder.tangent = before


def _numbers(value: Tensor | float, device: torch.device) -> Tensor:
    """Return a number as float32 `[1]`, or one a row, `[B]`, without waiting for the device."""
    if isinstance(value, Tensor):
        return send(value, device).float().reshape(-1)
    return torch.full((1,), value, dtype=torch.float32, device=device)


@contextmanager
def moved_inputs(network: nn.Module, move: Tensor) -> Iterator[None]:
    """Move every fed number by `move` times its tangent; with a dual `move` the embeddings are dual numbers too."""
    embedders = [module for module in network.modules() if isinstance(module, ScalarEmbedder)]
    for embedder in embedders:
        embedder.move = move
    try:
        yield
    finally:
        for embedder in embedders:
            embedder.move = None
