"""bfloat16 on CPUs, where torch is slow: products in float32, results rounded to bfloat16.

Without bfloat16 instructions torch multiplies bfloat16 matrices some seventy times slower than float32 ones. Inside
:func:`wide_products` every matrix product, convolution and attention whose inputs are bfloat16 is then computed in
float32 and its result rounded, forward and backward. With these instructions only the attention that is differentiated
is: with its backward pass it takes torch five times as long in bfloat16 as in float32 for a caption of 16 tokens, and
1.2 times for 300 (benchmarks/cpu_attention.py). Weights stay bfloat16; only the operands of the running operation exist
twice. The numbers are those of hardware that accumulates in float32, which is all of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_aten = torch.ops.aten

_VECTOR = 16  # float32 values in the widest vectors of a CPU

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
    """What a CPU without bfloat16 instructions needs; :func:`wide_products` enters it."""

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


class WideAttention(TorchFunctionMode):
    """What a CPU with bfloat16 instructions needs; :func:`wide_products` enters it.

    Keys are padded to a whole number of vectors too: 11 of them take torch three times as long as 16 do.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention or not _is_narrow_attention(*args, **kwargs):
            return func(*args, **kwargs)
        return _attention(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    """torch's attention of bfloat16, of (batch, heads, tokens, channels), with its backward pass in float32."""
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    num_keys = key.shape[-2]
    if extra := 0 if is_causal else -num_keys % _VECTOR:
        if attn_mask is None:
            attn_mask = query.new_ones(num_keys, dtype=torch.bool).expand(*key.shape[:-3], 1, 1, num_keys)
        blocked = False if attn_mask.dtype == torch.bool else float("-inf")
        attn_mask = functional.pad(attn_mask, (0, extra), value=blocked)
        key, value = (functional.pad(tensor, (0, 0, 0, extra)) for tensor in (key, value))
    if not differentiated:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **rest)
    query, key, value, attn_mask = tree_map(_widen, (query, key, value, attn_mask))
    with torch.autocast("cpu", enabled=False):
        result = functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **rest)
    return result.bfloat16()


def wide_products(device: torch.device | str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context for work in ``dtype`` on ``device``; it does nothing unless that is bfloat16 on a CPU.

    A backward pass must run inside as well.
    """
    if dtype == torch.bfloat16 and torch.device(device).type == "cpu":
        return mode()
    return contextlib.nullcontext()


def mode() -> AbstractContextManager[Any]:
    """The mode that this CPU needs."""
    return WideAttention() if native() else WideProducts()


@functools.cache
def native() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself."""
    supported: Callable[[], bool] | None = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and torch.backends.mkldnn.is_available() and bool(supported())


def _is_narrow_attention(query: Tensor, *_: Any, **__: Any) -> bool:
    """Whether attention with these queries would run in bfloat16, by itself or under autocast."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and query.device.type == "cpu"
    return _is_narrow(query)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widen(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
