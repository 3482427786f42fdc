"""A GPU without a GPU: tensors that say they are on CUDA and have no values, and moves that a ledger sees.

A forward pass on fake CUDA tensors needs no driver. What does is stood in for: the streams of diffusers' group
offloading, the pinned copies, and the choice of an attention kernel. Attention takes what its fused kernels take: the
result and the logarithms of its sums; for heads above 256 also the float32 sums of the memory-efficient kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional

from ddx.memory.no_values import no_values
from ddx.offload import turns

GPU = torch.device("cuda", 0)
_WIDEST = 256  # of a head, in the flash kernel


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within, networks come from their configs, and `cuda` is a device whose tensors have no values."""
    from diffusers.hooks import group_offloading

    group: Any = group_offloading.ModuleGroup
    with ExitStack() as stack:
        stack.enter_context(no_values(fused=False))
        for place, name, value in (
            (functional, "scaled_dot_product_attention", attention),
            (turns, "assign", _assign),
            (group_offloading, "TorchDeviceBackend", _Backend),
            (group, "_init_cpu_param_dict", lambda self: {}),
            (group, "onload_", _onload),
            (group, "offload_", _offload),
            (torch.cuda, "empty_cache", lambda: None),
            (FakeTensor, "__deepcopy__", lambda value, memo: value.clone()),  # torch's own breaks the heap
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(torch.no_grad())
        yield


class _Backend:
    """Streams that wait for nothing."""

    def __init__(self, device: Any) -> None:
        pass

    def Stream(self) -> Any:
        return self

    current_stream = Stream

    def synchronize(self) -> None:
        pass

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()


def _tensors(group: Any) -> Iterator[Tensor]:
    yield from turns.tensors_of(group.modules)
    yield from (*group.parameters, *group.buffers)


def _onload(group: Any) -> None:
    for tensor in _tensors(group):
        if tensor.device != GPU:
            host = tensor.data
            group.cpu_param_dict[tensor] = host
            _assign(tensor, host.to(GPU))


def _offload(group: Any) -> None:
    for tensor in _tensors(group):
        if tensor in group.cpu_param_dict:
            _assign(tensor, group.cpu_param_dict.pop(tensor))


def _assign(tensor: Any, values: Tensor) -> None:
    tensor.data = values
    tensor.fake_device = values.device  # which `data` leaves as it was


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return a tensor like softmax attention's, and make beside it what its kernels make."""
    shape = (*query.shape[:-1], value.shape[-1])
    sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
    wide = query.new_empty(shape, dtype=torch.float32) if query.shape[-1] > _WIDEST else None
    found = query.new_empty(shape)
    del sums, wide
    return found
