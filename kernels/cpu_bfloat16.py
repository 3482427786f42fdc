"""bfloat16 on CPUs without bfloat16 instructions: products in float32, results rounded to bfloat16.

torch multiplies bfloat16 matrices on such a CPU some seventy times slower than float32 ones. Inside
:func:`wide_products` every matrix product, convolution and attention whose inputs are bfloat16 is computed in
float32 and its result rounded, forward and backward. Weights stay bfloat16; only the operands of the running
operation exist twice. The numbers are those of hardware that accumulates in float32, which is all of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_aten = torch.ops.aten

_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default

_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.convolution.default,
        _aten.convolution_backward.default,
        _ATTENTION,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)


class WideProducts(TorchDispatchMode):
    """The mode itself; use :func:`wide_products`, which enters it only where it helps."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(_is_narrow(value) for value in args):
            return func(*args, **kwargs)
        result = func(*tree_map(_widen, args), **tree_map(_widen, kwargs))
        if func is _ATTENTION:  # its second result, the log of the sum of exponentials, is float32 for every dtype
            return (_narrow(result[0]), *result[1:])
        return tree_map(_narrow, result)


def wide_products(device: torch.device | str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context for work in ``dtype`` on ``device``; it does nothing unless that is bfloat16 on a CPU without it.

    A backward pass must run inside as well.
    """
    if dtype == torch.bfloat16 and torch.device(device).type == "cpu" and not native():
        return WideProducts()
    return contextlib.nullcontext()


@functools.cache
def native() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself."""
    supported: Callable[[], bool] | None = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and torch.backends.mkldnn.is_available() and bool(supported())


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widen(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
