"""bfloat16 in Triton's interpreter, which keeps it as uint16 and computes with the bits, and cuts off where GPUs round.

Inside :func:`rounding_bfloat16` the operations of the interpreter widen bfloat16 to float32 and round their result to
the nearest, ties to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(bits.view(np.float32)), 0x7FC0, rounded).astype(np.uint16)


def rounding_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Make the interpreter compute in bfloat16 until `patch` is undone."""
    builder: Any = InterpreterBuilder
    real = {name: getattr(builder, name) for name in ("cast_impl", "create_fp_to_fp", "create_dot", "create_fma")}

    def elementwise(name: str) -> None:
        plain = getattr(builder, name)

        def run(self: Any, *handles: Any) -> Any:
            *handles, function = handles
            kept = [handle for handle in handles if _is_narrow(handle)]
            if not kept or function is np.where:  # which only chooses
                return plain(self, *handles, function)
            found = function(*(_wide(handle).data for handle in handles))
            return TensorHandle(found, tl.int1) if found.dtype == np.bool_ else TensorHandle(narrow(found), tl.bfloat16)

        patch.setattr(builder, name, run)

    for name in ("unary_op", "binary_op", "ternary_op"):
        elementwise(name)

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        if dtype.scalar == tl.bfloat16 and not _is_narrow(source):
            return TensorHandle(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return real["cast_impl"](self, _wide(source), dtype)

    def create_fp_to_fp(self: Any, source: Any, dtype: Any, rounding: Any) -> Any:
        return cast_impl(self, source, dtype)  # nobody here asks for another rounding

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return real["create_dot"](self, _wide(a), _wide(b), *rest)

    def create_fma(self: Any, *handles: Any) -> Any:
        found = real["create_fma"](self, *map(_wide, handles))
        return TensorHandle(narrow(found.data), tl.bfloat16) if _is_narrow(handles[2]) else found

    for function in (cast_impl, create_fp_to_fp, create_dot, create_fma):
        patch.setattr(builder, function.__name__, function)


def _is_narrow(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16) and handle.data.dtype == np.uint16


def _wide(handle: Any) -> Any:
    return TensorHandle(widen(handle.data), tl.float32) if _is_narrow(handle) else handle
