"""The casts of CUDA's autocast, made by the processor's.

A backward pass on fake CUDA tensors needs a driver, on fake CPU tensors it does not. The two autocasts differ in what
they run in float32 whatever its inputs are: without that, the activations of norms and losses would count half.
The functions themselves are wrapped, since no mode is active where a checkpointed block is computed again.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# what CUDA's autocast runs in float32 and the processor's does not, https://pytorch.org/docs/stable/amp.html
_WIDE: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (functional, ("layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "mse_loss", "l1_loss", "softplus")),
    (torch, ("softmax", "pow", "exp", "log", "rsqrt", "reciprocal", "sum", "cumsum", "prod", "norm", "layer_norm")),
    (Tensor, ("softmax", "pow", "__pow__", "exp", "log", "rsqrt", "sum", "cumsum", "norm")),
)


@contextmanager
def cuda_casts() -> Iterator[None]:
    """Within, the processor's autocast casts as CUDA's does."""
    importlib.import_module("torch._decomp.decompositions_for_jvp")  # compiles some of these functions at its import

    kept = [(place, name, getattr(place, name)) for place, names in _WIDE for name in names]
    for place, name, plain in kept:
        setattr(place, name, _wide(plain))
    try:
        yield
    finally:
        for place, name, plain in kept:
            setattr(place, name, plain)


def _wide(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            return plain(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return plain(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})

    return call


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value
