"""Random numbers on the device by a counter: Philox 4x32-10 (Salmon et al. 2011, Random123).

    normal  n = sqrt(-2 ln u1) (cos 2 pi u2, sin 2 pi u2)         Box and Muller
    uniform 53 bits of two words, in [0, 1)

A row's numbers are a function of (its key, the stream, their place) alone: no state, no order of calls, no host.
Counter c gives four words; word k of it is the number at c + k N/4 of a row of N, N/4 rounded up.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels.dispatch import use_triton
from ddx.kernels.launch import Kernel, Launch, blocks

NORMAL = Launch("philox_normal", {"BLOCK": 512, "num_warps": 4}, ({"BLOCK": 1024, "num_warps": 4},))
UNIFORM = Launch("philox_uniform", {"BLOCK": 64, "num_warps": 1})

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def normal(keys: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 ``[B, *shape]``, for the keys of B rows, int64 ``[B]``, on their device."""
    count = math.prod(shape)
    if use_triton(keys):
        quarter, options = blocks(count, 4), NORMAL.options(keys.device)
        out = torch.empty(len(keys), count, dtype=torch.float32, device=keys.device)
        grid = blocks(quarter, options["BLOCK"]), len(keys)
        _normal_kernel.launch(grid, keys.device, options, keys, out, stream, count, quarter)
        return out.reshape(len(keys), *shape)
    return normal_reference(keys, stream, count).reshape(len(keys), *shape)


def normal_reference(keys: Tensor, stream: int, count: int) -> Tensor:
    """What the kernel computes, in plain torch: float32 ``[B, count]``."""
    counter = torch.arange(blocks(count, 4), device=keys.device)
    words = philox(keys[:, None], counter[None, :], stream)
    pairs = [number for k in (0, 2) for number in _box_muller(words[k], words[k + 1])]
    return torch.cat(pairs, dim=1)[:, :count]


def uniform(keys: Tensor, stream: int) -> Tensor:
    """One number in [0, 1) a row, float64 ``[B]``, for keys int64 ``[B]``, on their device."""
    if use_triton(keys):
        out = torch.empty(len(keys), dtype=torch.float64, device=keys.device)
        options = UNIFORM.options(keys.device)
        grid = (blocks(len(keys), options["BLOCK"]),)
        _uniform_kernel.launch(grid, keys.device, options, keys, out, stream, len(keys))
        return out
    return uniform_reference(keys, stream)


def uniform_reference(keys: Tensor, stream: int) -> Tensor:
    """What the kernel computes, in plain torch, to the bit."""
    first, second, *_ = philox(keys, torch.zeros_like(keys), stream)
    return ((first >> 5 << 26) + (second >> 6)).double() * 2.0**-53


def philox(keys: Tensor, counter: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, int64, for each key of 64 bits and the counter (counter, stream, 0, 0)."""
    k0, k1 = keys & _MASK, keys >> 32 & _MASK
    c0, c1, c2, c3 = counter, torch.full_like(counter, stream), torch.zeros_like(counter), torch.zeros_like(counter)
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # the low 64 bits, whose sign does not matter
        c0, c1, c2, c3 = (
            (second >> 32 & _MASK) ^ c1 ^ k0,
            second & _MASK,
            (first >> 32 & _MASK) ^ c3 ^ k1,
            first & _MASK,
        )
        k0, k1 = k0 + _KEY_STEPS[0] & _MASK, k1 + _KEY_STEPS[1] & _MASK
    return c0, c1, c2, c3


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    radius = (-2.0 * ((first + 1).float() * 2.0**-32).log()).sqrt()
    angle = second.float() * (2.0 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()


@triton.jit
def _pair(first, second):  # type: ignore[no-untyped-def]
    """Two normal numbers of two words. One is added in 64 bits: of all ones it would be 0, whose logarithm is not."""
    u = (first.to(tl.int64) + 1).to(tl.float32) * 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    angle = second.to(tl.int64).to(tl.float32) * 1.4629180792671596e-09
    return radius * tl.cos(angle), radius * tl.sin(angle)


@Kernel
def _normal_kernel(  # type: ignore[no-untyped-def]
    key_ptr,
    out_ptr,
    stream,
    count,
    quarter,
    BLOCK: tl.constexpr,
):
    """One block of counters of one row: four numbers each, one a quarter."""
    row = tl.program_id(1).to(tl.int64)
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + row).to(tl.uint64)
    c0 = counter.to(tl.uint32)
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox(key, c0, zero + stream, zero, zero)
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    at, inside = out_ptr + row * count, counter < quarter
    tl.store(at + counter, n0, mask=inside & (counter < count))
    tl.store(at + quarter + counter, n1, mask=inside & (quarter + counter < count))
    tl.store(at + 2 * quarter + counter, n2, mask=inside & (2 * quarter + counter < count))
    tl.store(at + 3 * quarter + counter, n3, mask=inside & (3 * quarter + counter < count))


@Kernel
def _uniform_kernel(  # type: ignore[no-untyped-def]
    key_ptr,
    out_ptr,
    stream,
    num_rows,
    BLOCK: tl.constexpr,
):
    """One number a row, of 53 bits."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + rows, mask=rows < num_rows, other=0).to(tl.uint64)
    zero = (rows * 0).to(tl.uint32)
    first, second, _, _ = tl.philox(key, zero, zero + stream, zero, zero)
    bits = (first >> 5).to(tl.int64) * 67108864 + (second >> 6).to(tl.int64)
    tl.store(out_ptr + rows, bits.to(tl.float64) * 1.1102230246251565e-16, mask=rows < num_rows)
