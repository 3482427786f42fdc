"""What layers of a network put out while it computes something else: what discriminators look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def outputs_of(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of `layers`, in the order in which they are computed inside the `with` block."""
    found: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda _module, _inputs, output: found.append(output)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def every_fourth(blocks: list[nn.Module]) -> list[nn.Module]:
    """Return every fourth of some blocks and the last one."""
    return [block for number, block in enumerate(blocks, 1) if number % 4 == 0 or number == len(blocks)]


def as_map(feature: Tensor, picture: Tensor) -> Tensor:
    """Return a layer's output as `[B, C, h, w]`; `picture` is what the network looked at, `[B, C, H, W]`.

    The tokens `[B, N, D]` of a picture go to their places, and one vector `[B, D]` of the whole becomes a map of 1 x 1.
    """
    match feature.ndim:
        case 2:
            return feature[:, :, None, None]
        case 3:
            rows = max(1, round(math.sqrt(feature.shape[1] * picture.shape[2] / picture.shape[3])))
            placed: Tensor = feature.transpose(1, 2).unflatten(2, (rows, feature.shape[1] // rows))
            return placed
        case _:
            return feature
