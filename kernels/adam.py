"""AdamW and RAdam over all weights of a network in one pass, with clipping and moving averages of the weights in it.

    g    gradient / divisor
    m    b1 m + (1 - b1) g,      v = b2 v + (1 - b2) g^2
    w    (1 - rate decay) w - step m / (root sqrt(v) + floor)
    a    a + x (w - a)           for each average, x = 1 - its decay

    AdamW   step = rate / (1 - b1^t),  root = 1 / sqrt(1 - b2^t),  floor = epsilon
    RAdam   rho = 2 / (1 - b2) - 1,    rho_t = rho - 2 t b2^t / (1 - b2^t)
            rho_t > 5:  step = rate / (1 - b1^t) sqrt(1 - b2^t) r_t,  root = 1,  floor = epsilon,
                        r_t^2 = (rho_t - 4) (rho_t - 2) rho / ((rho - 4) (rho - 2) rho_t)
            else:       step = rate / (1 - b1^t),  root = 0,  floor = 1

Loshchilov & Hutter 2019 (AdamW); Liu et al. 2020 (RAdam), in torch's form. Where `found_inf` is above zero weights,
moments and counts of steps stay as they are, and only the averages move: nobody waits for that number.

Two launches: the three factors of each tensor, in float64, from its own count of steps; then all that is read and
written, once: 28 bytes a weight and 8 for each average. The kernels find the tensors by their addresses, of which the
host sends a table.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels.launch import Kernel, Launch, blocks

_CHUNK = 16384  # elements of a program
_BLOCKS = ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 2048, "num_warps": 8}, {"BLOCK": 512, "num_warps": 4})
UPDATE = Launch("adam", default=_BLOCKS[0], candidates=_BLOCKS)
FACTORS = Launch("adam_factors", default={"BLOCK": 32, "num_warps": 1})

_COLUMNS = 5  # addresses of a tensor before those of its averages: weight, gradient, m, v, count of steps
_SETTINGS = 5  # numbers before the averages' weights: rate, b1, b2, epsilon, decay


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The numbers of an update; `rectified` tells RAdam from AdamW, both with decoupled weight decay."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    decay: float = 0.0
    rectified: bool = False


@dataclass(frozen=True, kw_only=True)
class Updated:
    """A weight with what goes with it, all float32, contiguous and of its shape; `count` is 0-d.

    Without a gradient only the averages move; the moments and the count may be None then. All are changed in place but
    the gradient.
    """

    weight: Tensor
    gradient: Tensor | None
    m: Tensor | None
    v: Tensor | None
    count: Tensor | None
    averages: Sequence[Tensor] = ()


def update_reference(
    weight: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    averages: Sequence[tuple[float, Tensor]] = (),
    *,
    count: int,
    rule: Rule,
) -> dict[str, Tensor]:
    """The formulas in plain torch, in the dtype of the weight, for step number `count`, from 1.

    averages: each with its x. Returns "weight", "m", "v" and the averages as "average 0", …
    """
    m = rule.beta1 * m + (1.0 - rule.beta1) * gradient
    v = rule.beta2 * v + (1.0 - rule.beta2) * gradient * gradient
    step, root, floor = factors_reference(count, rule)
    weight = (1.0 - rule.rate * rule.decay) * weight - step * m / (root * v.sqrt() + floor)
    moved = {f"average {k}": a + x * (weight - a) for k, (x, a) in enumerate(averages)}
    return {"weight": weight, "m": m, "v": v, **moved}


def factors_reference(count: int, rule: Rule) -> tuple[float, float, float]:
    """Return (step, root, floor) of step number `count`."""
    left1, left2 = 1.0 - rule.beta1**count, 1.0 - rule.beta2**count
    step = rule.rate / left1
    if not rule.rectified:
        return step, left2**-0.5, rule.epsilon
    rho = 2.0 / (1.0 - rule.beta2) - 1.0
    rho_t = rho - 2.0 * count * rule.beta2**count / left2
    if rho_t <= 5.0:
        return step, 0.0, 1.0
    rectification = ((rho_t - 4.0) * (rho_t - 2.0) * rho / ((rho - 4.0) * (rho - 2.0) * rho_t)) ** 0.5
    return step * rectification * left2**0.5, 1.0, rule.epsilon


def update(
    tensors: Sequence[Updated], rule: Rule, *, divisor: Tensor, found_inf: Tensor, average_weights: Sequence[float] = ()
) -> None:
    """Take one step of all `tensors`, in place, without waiting for the device.

    divisor, found_inf: 0-d float32 on the device; average_weights: x of each average that every one of them has.
    """
    device = tensors[0].weight.device
    addresses = [address for each in tensors for address in _addresses(each)]
    numbers = [rule.rate, rule.beta1, rule.beta2, rule.epsilon, rule.decay, *average_weights]
    told = _send(addresses, numbers, device)
    table, settings = told[: len(addresses)], told[len(addresses) :].view(torch.float64)
    sizes, chunks = _layout(tuple(each.weight.numel() for each in tensors), device)
    columns = _COLUMNS + len(average_weights)
    factors = torch.empty(len(tensors), 3, dtype=torch.float32, device=device)
    options = FACTORS.options(device)
    _adam_factors_kernel.launch(
        (blocks(len(tensors), options["BLOCK"]),),
        device,
        options.joined(RECTIFIED=rule.rectified, COLUMNS=columns),
        table,
        settings,
        found_inf,
        factors,
        len(tensors),
    )
    # four numbers at a time, where every tensor begins and ends at such a place
    aligned = all(each.weight.numel() % 4 == 0 for each in tensors) and all(
        address % 16 == 0 for k, address in enumerate(addresses) if k % columns != _COLUMNS - 1
    )
    _adam_kernel.launch(
        (len(chunks),),
        device,
        UPDATE.options(device).joined(CHUNK=_CHUNK, AVERAGES=len(average_weights), ALIGN=16 if aligned else 4),
        table,
        sizes,
        chunks,
        factors,
        settings,
        divisor,
        found_inf,
    )


def _addresses(each: Updated) -> list[int]:
    parts = (each.weight, each.gradient, each.m, each.v, each.count, *each.averages)
    return [0 if part is None else part.data_ptr() for part in parts]


def _send(addresses: list[int], numbers: list[float], device: torch.device) -> Tensor:
    """Return both as one int64 tensor on the device: 64 bits each, in one copy that nobody waits for."""
    words = torch.cat([torch.tensor(addresses), torch.tensor(numbers, dtype=torch.float64).view(torch.int64)])
    if device.type == "cuda":
        words = words.pin_memory()
    return words.to(device, non_blocking=True)


@functools.lru_cache(maxsize=16)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sizes int64 `[T]`, and int32 `[C, 2]`: tensor and number of each chunk in it."""
    tensors = [index for index, size in enumerate(sizes) for _ in range(blocks(size, _CHUNK))]
    places = [place for size in sizes for place in range(blocks(size, _CHUNK))]
    chunks = torch.tensor([tensors, places], dtype=torch.int32).T.contiguous()
    return torch.tensor(sizes).to(device), chunks.to(device)


@triton.jit
def _power(base, exponent):  # type: ignore[no-untyped-def]
    """Raise float64 to whole numbers below 2^24, by squaring."""
    result = base * 0.0 + 1.0
    for bit in tl.static_range(24):
        result = tl.where((exponent >> bit) & 1 == 1, result * base, result)
        base = base * base
    return result


@Kernel
def _adam_factors_kernel(  # type: ignore[no-untyped-def]
    table_ptr,
    settings_ptr,
    found_inf_ptr,
    factors_ptr,
    num_tensors,
    RECTIFIED: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some tensors: count the step, and work out its factors."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_tensors
    gradient = tl.load(table_ptr + index * COLUMNS + 1, mask=inside, other=0)
    count_ptr = tl.load(table_ptr + index * COLUMNS + 4, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    taken = inside & (gradient != 0) & (tl.load(found_inf_ptr + index * 0, mask=inside, other=1.0) == 0.0)
    count = tl.load(count_ptr, mask=taken, other=0.0) + 1.0
    tl.store(count_ptr, count, mask=taken)
    rate, beta1 = tl.load(settings_ptr), tl.load(settings_ptr + 1)
    beta2, epsilon = tl.load(settings_ptr + 2), tl.load(settings_ptr + 3)
    exponent, t = count.to(tl.int32), count.to(tl.float64)
    power2 = _power(t * 0.0 + beta2, exponent)
    left2 = 1.0 - power2
    step = rate / (1.0 - _power(t * 0.0 + beta1, exponent))
    root, floor = 1.0 / tl.sqrt(left2), t * 0.0 + epsilon
    if RECTIFIED:
        rho = 2.0 / (1.0 - beta2) - 1.0
        rho_t = rho - 2.0 * t * power2 / left2
        known = rho_t > 5.0
        square = (rho_t - 4.0) * (rho_t - 2.0) * rho / ((rho - 4.0) * (rho - 2.0) * rho_t)
        step = tl.where(known, step * tl.sqrt(tl.where(known, square, 1.0)) * tl.sqrt(left2), step)
        root, floor = tl.where(known, 1.0, 0.0), tl.where(known, floor, 1.0)
    tl.store(factors_ptr + index * 3, step.to(tl.float32), mask=inside)
    tl.store(factors_ptr + index * 3 + 1, root.to(tl.float32), mask=inside)
    tl.store(factors_ptr + index * 3 + 2, floor.to(tl.float32), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _place(table_ptr, column, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tensor whose address is in this column."""
    return tl.multiple_of(tl.load(table_ptr + column).to(tl.pointer_type(tl.float32)), ALIGN)


@Kernel
def _adam_kernel(  # type: ignore[no-untyped-def]
    table_ptr,
    sizes_ptr,
    chunks_ptr,
    factors_ptr,
    settings_ptr,
    divisor_ptr,
    found_inf_ptr,
    CHUNK: tl.constexpr,
    AVERAGES: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one tensor."""
    tensor = tl.load(chunks_ptr + 2 * tl.program_id(0)).to(tl.int64)
    start = tl.load(chunks_ptr + 2 * tl.program_id(0) + 1).to(tl.int64) * CHUNK
    size = tl.multiple_of(tl.load(sizes_ptr + tensor), ALIGN // 4)
    table_ptr += tensor * (5 + AVERAGES)
    weight_ptr = _place(table_ptr, 0, ALIGN)
    taken = (tl.load(table_ptr + 1) != 0).to(tl.int32) * (tl.load(found_inf_ptr) == 0.0).to(tl.int32) != 0
    gradient_ptr, m_ptr, v_ptr = _place(table_ptr, 1, ALIGN), _place(table_ptr, 2, ALIGN), _place(table_ptr, 3, ALIGN)
    rate, decay = tl.load(settings_ptr), tl.load(settings_ptr + 4)
    kept = (1.0 - rate * decay).to(tl.float32)
    beta1, beta2 = tl.load(settings_ptr + 1), tl.load(settings_ptr + 2)
    new1, new2 = (1.0 - beta1).to(tl.float32), (1.0 - beta2).to(tl.float32)
    beta1, beta2 = beta1.to(tl.float32), beta2.to(tl.float32)
    step, root = tl.load(factors_ptr + tensor * 3), tl.load(factors_ptr + tensor * 3 + 1)
    floor, divisor = tl.load(factors_ptr + tensor * 3 + 2), tl.load(divisor_ptr)
    for offset in range(0, tl.minimum(size - start, CHUNK).to(tl.int32), BLOCK):
        index = start + offset + tl.arange(0, BLOCK)
        inside = index < size
        weight = tl.load(weight_ptr + index, mask=inside, other=0.0)
        if taken:
            gradient = tl.load(gradient_ptr + index, mask=inside, other=0.0) / divisor
            m = beta1 * tl.load(m_ptr + index, mask=inside, other=0.0) + new1 * gradient
            v = beta2 * tl.load(v_ptr + index, mask=inside, other=0.0) + new2 * gradient * gradient
            weight = kept * weight - step * m / (root * tl.sqrt_rn(v) + floor)
            tl.store(m_ptr + index, m, mask=inside)
            tl.store(v_ptr + index, v, mask=inside)
            tl.store(weight_ptr + index, weight, mask=inside)
        for k in tl.static_range(AVERAGES):
            average_ptr = _place(table_ptr, 5 + k, ALIGN)
            x = tl.load(settings_ptr + 5 + k)
            average = tl.load(average_ptr + index, mask=inside, other=0.0)
            near = average + x.to(tl.float32) * (weight - average)
            # as torch's lerp: at x = 1 it is the weight itself
            far = weight - (weight - average) * (1.0 - x).to(tl.float32)
            tl.store(average_ptr + index, tl.where(x < 0.5, near, far), mask=inside)
