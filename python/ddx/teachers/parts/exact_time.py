"""Times that reach a network's sinusoids in float32: several transformers of diffusers round them to their own dtype.

In bfloat16 0.901 and 0.903 are the same time, and a student could not learn what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def exact_time(network: nn.Module, sinusoids: str, times: Tensor) -> Iterator[None]:
    """Feed `times`, float32 `[B]`, to the layer `sinusoids` of the network in the forward passes inside."""
    layer = getattr(network, "module", network).get_submodule(sinusoids)
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: (times, *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()
