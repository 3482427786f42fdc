"""Numbers that reach a network's sinusoids in float32: several transformers of diffusers round them to their own dtype.

In bfloat16 0.901 and 0.903 are the same time, and a student could not learn what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def exact_time(network: nn.Module, sinusoids: str, *numbers: Tensor) -> Iterator[None]:
    """Give the layer `sinusoids` these first inputs, float32 `[B]`, in the network's forward passes inside."""
    layer = getattr(network, "module", network).get_submodule(sinusoids)
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: (*numbers, *inputs[len(numbers) :]))
    try:
        yield
    finally:
        handle.remove()
