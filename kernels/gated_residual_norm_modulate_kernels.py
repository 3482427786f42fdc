"""The Triton kernels of :mod:`ddx.kernels.gated_residual_norm_modulate`, and how they read their tensors.

A program holds whole rows in registers. A row is cut in two parts, each a power of two wide (1152 = 1024 + 128,
2240 = 2048 + 192 of 256), where rounding up the whole would leave almost half of the lanes idle. What an operation
does not have is None, and its code is not compiled.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels.launch import Constants, Kernel


class Rows(NamedTuple):
    """A `[B, N, D]` tensor as a kernel reads it; the last axis has stride 1."""

    pointer: Any
    sample: int  # stride
    row: int  # stride


class Vectors(NamedTuple):
    """A vector of D for each sample as a kernel reads it; the last axis has stride 1."""

    pointer: Any
    sample: int  # stride


def rows_of(x: Tensor | None) -> Rows | None:
    """Return x `[B, N, D]` in place, or copied if its last axis is strided."""
    if x is None:
        return None
    x = x if x.stride(2) == 1 else x.contiguous()
    return Rows(x, x.stride(0), x.stride(1))


def vectors_of(value: Tensor | None) -> Vectors | None:
    """Return a gate, scale or shift (`[B, D]` or `[B, 1, D]`) in place, or copied if its last axis is strided."""
    if value is None:
        return None
    value = value if value.stride(-1) == 1 else value.contiguous()
    return Vectors(value, value.stride(0))


@functools.cache
def constants(options: Constants, width: int) -> Constants:
    """What a kernel over rows of `width` is compiled with.

    D, the widths of a row's two parts (of HEAD no column is masked, TAIL has the rest), and num_warps, of each row's
    HEAD WARP_COLUMNS to a warp.
    """
    head = max(triton.next_power_of_2(width) // 2, 1)
    tail = triton.next_power_of_2(max(width - head, 1))
    num_warps = min(max(head // options["WARP_COLUMNS"], 1), 16)
    kept = {name: value for name, value in options.items() if name not in ("WARP_COLUMNS", "PROGRAMS")}
    return Constants(kept, D=width, HEAD=head, TAIL=tail, num_warps=num_warps)


@triton.jit
def load_row(x, sample, row, head, tail, D):  # type: ignore[no-untyped-def]
    """The two parts of one row in float32, zero past the row's end."""
    at = x.pointer + (sample * x.sample + row * x.row)
    part0 = tl.load(at + head, mask=head < D, other=0.0).to(tl.float32)
    part1 = tl.load(at + tail, mask=tail < D, other=0.0).to(tl.float32)
    return part0, part1


@triton.jit
def load_vector(value, sample, head, tail, D):  # type: ignore[no-untyped-def]
    """The two parts of one sample's gate, scale or shift in float32, zero past their end."""
    at = value.pointer + sample * value.sample
    part0 = tl.load(at + head, mask=head < D, other=0.0).to(tl.float32)
    part1 = tl.load(at + tail, mask=tail < D, other=0.0).to(tl.float32)
    return part0, part1


@triton.jit
def rounded(part, pointer):  # type: ignore[no-untyped-def]
    """The values that a store to `pointer` leaves: the backward pass has only these, and where a row hardly varies
    they may be far from the others by its measure.
    """
    return part.to(pointer.dtype.element_ty).to(tl.float32)


@triton.jit
def store_row(pointer, part0, part1, row, head, tail, D):  # type: ignore[no-untyped-def]
    """Write the two parts of one row of a contiguous `[rows, D]`."""
    dtype = pointer.dtype.element_ty
    tl.store(pointer + row * D + head, part0.to(dtype), mask=head < D)
    tl.store(pointer + row * D + tail, part1.to(dtype), mask=tail < D)


@Kernel
def forward_kernel(  # type: ignore[no-untyped-def]
    residual,
    branch,
    gate,
    scale,
    shift,
    r_ptr,
    y_ptr,
    mean_ptr,
    rho_ptr,
    N,
    eps,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows of one sample: r where there is a branch; y and its statistics where there is a scale."""
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * ROWS
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    if gate is not None:
        gate0, gate1 = load_vector(gate, sample, head, tail, D)
    if scale is not None:
        scale0, scale1 = load_vector(scale, sample, head, tail, D)
        shift0, shift1 = load_vector(shift, sample, head, tail, D)
    for row in range(first, tl.minimum(first + ROWS, N)):
        here = sample * N + row
        r0, r1 = load_row(residual, sample, row, head, tail, D)
        if branch is not None:
            branch0, branch1 = load_row(branch, sample, row, head, tail, D)
            if gate is not None:
                branch0, branch1 = branch0 * gate0, branch1 * gate1
            r0, r1 = rounded(r0 + branch0, r_ptr), rounded(r1 + branch1, r_ptr)
            store_row(r_ptr, r0, r1, here, head, tail, D)
        if scale is not None:
            mean = (tl.sum(r0, axis=0) + tl.sum(r1, axis=0)) / D
            r0, r1 = r0 - mean, tl.where(tail < D, r1 - mean, 0.0)
            rho = 1.0 / tl.sqrt((tl.sum(r0 * r0, axis=0) + tl.sum(r1 * r1, axis=0)) / D + eps)
            y0, y1 = r0 * rho * (1.0 + scale0) + shift0, r1 * rho * (1.0 + scale1) + shift1
            store_row(y_ptr, y0, y1, here, head, tail, D)
            tl.store(mean_ptr + here, mean)
            tl.store(rho_ptr + here, rho)


@Kernel
def backward_kernel(  # type: ignore[no-untyped-def]
    gr,
    gy,
    r,
    branch,
    gate,
    scale,
    mean_ptr,
    rho_ptr,
    d_residual_ptr,
    d_branch_ptr,
    partial_ptr,
    N,
    rows,
    D: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    MODULATION_SUMS: tl.constexpr,
    GATE_SUM: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`rows` rows of one sample: gradients of residual and branch, and partial sums for shift, scale and gate.

    `partial_ptr` is `[B, programs, planes, D]`: shift and scale if MODULATION_SUMS, then the gate if GATE_SUM. The next
    STAGES - 1 rows are on their way while one is computed.
    """
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * rows
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    if gate is not None:
        gate0, gate1 = load_vector(gate, sample, head, tail, D)
    if gy is not None:
        scale0, scale1 = load_vector(scale, sample, head, tail, D)
    zero0, zero1 = tl.zeros([HEAD], tl.float32), tl.zeros([TAIL], tl.float32)
    d_shift0, d_shift1, d_scale0, d_scale1, d_gate0, d_gate1 = zero0, zero1, zero0, zero1, zero0, zero1
    for row in tl.range(first, tl.minimum(first + rows, N), num_stages=STAGES):
        here = sample * N + row
        g0, g1 = zero0, zero1
        if gr is not None:
            g0, g1 = load_row(gr, sample, row, head, tail, D)
        if GATE_SUM:  # loaded before the sums along the row, which wait
            branch0, branch1 = load_row(branch, sample, row, head, tail, D)
        if gy is not None:
            mean, rho = tl.load(mean_ptr + here), tl.load(rho_ptr + here)
            w0, w1 = load_row(gy, sample, row, head, tail, D)
            x0, x1 = load_row(r, sample, row, head, tail, D)
            x0, x1 = (x0 - mean) * rho, (x1 - mean) * rho  # not zero past the row's end, but w1 is
            if MODULATION_SUMS:
                d_shift0, d_shift1 = d_shift0 + w0, d_shift1 + w1
                d_scale0, d_scale1 = d_scale0 + w0 * x0, d_scale1 + w1 * x1
            w0, w1 = w0 * (1.0 + scale0), w1 * (1.0 + scale1)
            along = (tl.sum(w0 * x0, axis=0) + tl.sum(w1 * x1, axis=0)) / D
            level = (tl.sum(w0, axis=0) + tl.sum(w1, axis=0)) / D
            g0, g1 = g0 + rho * (w0 - level - x0 * along), g1 + rho * (w1 - level - x1 * along)
            store_row(d_residual_ptr, g0, g1, here, head, tail, D)
        if GATE_SUM:
            d_gate0, d_gate1 = d_gate0 + g0 * branch0, d_gate1 + g1 * branch1
        if gate is not None:
            g0, g1 = g0 * gate0, g1 * gate1
        if d_branch_ptr is not None:
            store_row(d_branch_ptr, g0, g1, here, head, tail, D)
    plane = (sample * tl.num_programs(0) + tl.program_id(0)) * (2 * MODULATION_SUMS + GATE_SUM)
    if MODULATION_SUMS:
        store_row(partial_ptr, d_shift0, d_shift1, plane, head, tail, D)
        store_row(partial_ptr, d_scale0, d_scale1, plane + 1, head, tail, D)
    if GATE_SUM:
        store_row(partial_ptr, d_gate0, d_gate1, plane + 2 * MODULATION_SUMS, head, tail, D)
