"""Which blocks are computed again in the backward pass, and where their inputs wait for it.

A block that is computed again keeps its inputs alone (Chen et al. 2016, arXiv:1604.06174). Of those the first one, the
picture's hidden states, may wait in the host's memory: it goes there and comes back on the stream that computes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ddx.training.host_memory import empty_at_home

Again = Callable[..., Any]


def some_again(again: Again | None, share: float, *, on_host: bool) -> Again | None:
    """Return what computes `share` of a network's blocks again, evenly spread, each in the way `again`.

    A network of diffusers calls it for each block; None is diffusers' own way. on_host: whether inputs wait there.
    """
    return again if share == 1.0 and not on_host else _SomeAgain(again or _as_diffusers_does, share, on_host)


def _as_diffusers_does(block: nn.Module, *inputs: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(block.__call__, *inputs, use_reentrant=False)


class _SomeAgain:
    """Counts the blocks in the order of their first calls."""

    def __init__(self, again: Again, share: float, on_host: bool) -> None:
        self.again, self.share, self.on_host = again, share, on_host
        self._numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def __call__(self, block: nn.Module, *inputs: Any) -> Any:
        number = self._numbers.setdefault(block, len(self._numbers))
        if int((number + 1) * self.share) == int(number * self.share):
            return block(*inputs)
        with waiting_on_host(inputs[0]) if self.on_host and inputs[0].requires_grad else nullcontext():
            return self.again(block, *inputs)


class _Waiting(NamedTuple):
    """A tensor on the host, and how it lay in which device's memory: that decides how a product of it is taken."""

    value: Tensor
    stride: tuple[int, ...]
    device: torch.device


def waiting_on_host(first: Tensor) -> AbstractContextManager[None]:
    """Within, what is saved for the backward pass and shares the memory of `first` waits in the host's."""
    place = first.untyped_storage()._cdata

    def pack(value: Tensor) -> Tensor | _Waiting:
        if value.untyped_storage()._cdata != place:
            return value
        return _Waiting(empty_at_home(value).copy_(value, non_blocking=True), value.stride(), value.device)

    def unpack(packed: Tensor | _Waiting) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        value, stride, device = packed
        back = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=device)
        return back.copy_(value, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
