"""Softmax attention and its tangent in the queries, in one pass over constant keys and values.

    s  = scale q·k + bias,  p = softmax(s),         o  = Σ p v
    ds = scale dq·k,                                do = Σ p (ds - c) v - (Σ p (ds - c)) o      for any c

The sums run over blocks of keys with the online softmax of FlashAttention (Dao et al. 2022, algorithm 1): all three
are rescaled when a larger score comes, so memory is O(N). With c = 0 this is the derivative as it stands. But what all
keys share (their projection's bias, say) moves every ds alike, and would cancel only after p ds was rounded to half
precision; so c is the mean of ds over the first block of keys. Queries and keys are multiplied, and p and p (ds - c)
meet the values, in the dtype of the inputs; all sums are float32.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.launch import Kernel, Launch, blocks

HALF = Launch(  # up to 80 columns
    "cross_attention_dual",
    default={"BLOCK_N": 64, "BLOCK_L": 32, "num_warps": 4, "num_stages": 3},
    candidates=(
        {"BLOCK_N": 64, "BLOCK_L": 64, "num_warps": 4, "num_stages": 2},
        {"BLOCK_N": 64, "BLOCK_L": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_N": 128, "BLOCK_L": 32, "num_warps": 8, "num_stages": 3},
        {"BLOCK_N": 128, "BLOCK_L": 64, "num_warps": 8, "num_stages": 2},
    ),
)
WIDE = Launch(  # 128 columns
    "cross_attention_dual_wide",
    default={"BLOCK_N": 128, "BLOCK_L": 32, "num_warps": 8, "num_stages": 3},
    candidates=(
        {"BLOCK_N": 128, "BLOCK_L": 32, "num_warps": 8, "num_stages": 2},
        {"BLOCK_N": 64, "BLOCK_L": 32, "num_warps": 4, "num_stages": 2},
        {"BLOCK_N": 64, "BLOCK_L": 32, "num_warps": 8, "num_stages": 2},
    ),
)
FLOAT32 = Launch(
    "cross_attention_dual_float32",
    default={"BLOCK_N": 32, "BLOCK_L": 16, "num_warps": 8, "num_stages": 2},
    candidates=({"BLOCK_N": 16, "BLOCK_L": 16, "num_warps": 4, "num_stages": 2},),
)

LARGEST_HEAD = 128  # columns that the kernel's accumulators have room for


def cross_attention_dual_reference(
    q: Tensor, dq: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and its tangent in plain torch; see :func:`cross_attention_dual`. float64 is computed in float64."""
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    wide_q, wide_dq, wide_k, wide_v = (value.to(compute).transpose(1, 2) for value in (q, dq, k, v))  # [B, H, ., d]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    s = factor * wide_q @ wide_k.mT
    if mask is not None:
        bias = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask
        s = s + bias.to(compute)[:, None, None, :]
    largest = s.detach().amax(dim=-1, keepdim=True)
    p = torch.exp(s - largest.where(largest > -math.inf, 0.0))
    total = p.sum(dim=-1, keepdim=True)
    p = p / total.where(total > 0, 1.0)  # zeros where every key is masked, as from SDPA
    ds = factor * wide_dq @ wide_k.mT
    dp = p * (ds - (p * ds).sum(dim=-1, keepdim=True))
    return (p @ wide_v).transpose(1, 2).to(q.dtype), (dp @ wide_v).transpose(1, 2).to(dq.dtype)


def cross_attention_dual(
    q: Tensor, dq: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """(attention of q over k and v, its tangent for the tangent dq of q), both `[B, N, H, d]`; without gradients.

    q, dq: `[B, N, H, d]`; k, v: `[B, L, H, d]`; of one dtype and any strides (a last axis of stride 1 is read in
    place); d above 128 takes the reference, which keeps the matrix of scores. mask: None, or `[B, L]`, booleans (True:
    the key is seen) or a bias that is added to the scores of every head and query. A query that sees no key, for a
    bias of -inf too, gets zeros as from SDPA. scale: d^-1/2 unless given. Raises ValueError for shapes and dtypes that
    do not fit.
    """
    _check(q, dq, k, v, mask)
    if q.shape[-1] > LARGEST_HEAD or not dispatch.use_triton(q, dq, k, v, mask):
        return cross_attention_dual_reference(q, dq, k, v, mask, scale=scale)
    o, do = _cross_attention_dual(q, dq, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    return o, do


def _check(q: Tensor, dq: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    if q.dim() != 4 or q.numel() == 0:
        raise ValueError(f"q must be [B, N, H, d] and not empty, got {tuple(q.shape)}")
    if dq.shape != q.shape:
        raise ValueError(f"q and dq must have one shape, got {tuple(q.shape)} and {tuple(dq.shape)}")
    batch, _, heads, width = q.shape
    if k.dim() != 4 or k.shape[1] == 0 or (k.shape[0], *k.shape[2:]) != (batch, heads, width):
        raise ValueError(f"k must be [{batch}, L, {heads}, {width}] and not empty, got {tuple(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if len({value.dtype for value in (q, dq, k, v)}) > 1:
        raise ValueError(f"q, dq, k, v must have one dtype, got {q.dtype}, {dq.dtype}, {k.dtype}, {v.dtype}")
    if mask is not None and mask.shape != k.shape[:2]:
        raise ValueError(f"mask must be {list(k.shape[:2])}, got {tuple(mask.shape)}")
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask must hold booleans or floats, got {mask.dtype}")


@Kernel
def _dual_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    dq_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    o_ptr,
    do_ptr,
    num_queries,
    num_keys,
    num_heads,
    scale,
    q_batch,
    q_row,
    q_head,
    dq_batch,
    dq_row,
    dq_head,
    k_batch,
    k_row,
    k_head,
    v_batch,
    v_row,
    v_head,
    mask_batch,
    D: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    MASK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """BLOCK_N queries of one head: MAIN columns of it and, where D is no power of two, REST more."""
    num_blocks = tl.cdiv(num_queries, BLOCK_N)
    batch = (tl.program_id(0) // num_blocks // num_heads).to(tl.int64)
    head = (tl.program_id(0) // num_blocks % num_heads).to(tl.int64)
    rows = (tl.program_id(0) % num_blocks * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    columns = tl.arange(0, MAIN)
    in_rows = rows < num_queries
    inside = in_rows[:, None] & (columns < D)[None, :]
    # Triton sees for itself only strides that are multiples of 16; a head of 72 needs to be told.
    q_ptr += tl.multiple_of(batch * q_batch + head * q_head, ALIGNMENT)
    dq_ptr += tl.multiple_of(batch * dq_batch + head * dq_head, ALIGNMENT)
    k_ptr += tl.multiple_of(batch * k_batch + head * k_head, ALIGNMENT)
    v_ptr += tl.multiple_of(batch * v_batch + head * v_head, ALIGNMENT)
    q_rows = tl.multiple_of(rows * q_row, ALIGNMENT)[:, None]
    dq_rows = tl.multiple_of(rows * dq_row, ALIGNMENT)[:, None]
    q = tl.load(q_ptr + q_rows + columns[None, :], mask=inside, other=0.0)
    dq = tl.load(dq_ptr + dq_rows + columns[None, :], mask=inside, other=0.0)
    o = tl.zeros([BLOCK_N, MAIN], tl.float32)
    do = tl.zeros([BLOCK_N, MAIN], tl.float32)
    if REST > 0:
        more = MAIN + tl.arange(0, REST)
        inside_more = in_rows[:, None] & (more < D)[None, :]
        q_more = tl.load(q_ptr + q_rows + more[None, :], mask=inside_more, other=0.0)
        dq_more = tl.load(dq_ptr + dq_rows + more[None, :], mask=inside_more, other=0.0)
        o_more = tl.zeros([BLOCK_N, REST], tl.float32)
        do_more = tl.zeros([BLOCK_N, REST], tl.float32)

    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)  # Σ p
    moved = tl.zeros([BLOCK_N], tl.float32)  # Σ p (ds - centre)
    centre = tl.zeros([BLOCK_N], tl.float32)
    log2_e = 1.4426950408889634
    for first in range(0, num_keys, BLOCK_L):
        keys = first + tl.arange(0, BLOCK_L)
        seen = keys < num_keys
        k_rows = tl.multiple_of(keys.to(tl.int64) * k_row, ALIGNMENT)
        v_rows = tl.multiple_of(keys.to(tl.int64) * v_row, ALIGNMENT)
        k = tl.load(k_ptr + k_rows[None, :] + columns[:, None], mask=seen[None, :] & (columns < D)[:, None], other=0.0)
        v = tl.load(v_ptr + v_rows[:, None] + columns[None, :], mask=seen[:, None] & (columns < D)[None, :], other=0.0)
        bias = tl.where(seen, 0.0, float("-inf"))
        if MASK == "keep":
            keep = tl.load(mask_ptr + batch * mask_batch + keys, mask=seen, other=0)
            bias = tl.where(keep != 0, 0.0, float("-inf"))
        elif MASK == "bias":
            bias = tl.load(mask_ptr + batch * mask_batch + keys, mask=seen, other=float("-inf")).to(tl.float32) * log2_e
        s = tl.dot(q, k, input_precision="ieee")
        ds = tl.dot(dq, k, input_precision="ieee")
        if REST > 0:
            key_more = seen[None, :] & (more < D)[:, None]
            k_more = tl.load(k_ptr + k_rows[None, :] + more[:, None], mask=key_more, other=0.0)
            value_more = seen[:, None] & (more < D)[None, :]
            v_more = tl.load(v_ptr + v_rows[:, None] + more[None, :], mask=value_more, other=0.0)
            s = tl.dot(q_more, k_more, s, input_precision="ieee")
            ds = tl.dot(dq_more, k_more, ds, input_precision="ieee")
        # s in units of log 2, so that exp2 is its exponential.
        s = s * (scale * log2_e) + bias[None, :]
        ds *= scale

        larger = tl.maximum(maximum, tl.max(s, axis=1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # no key seen yet: -inf less -inf would be NaN
        p = tl.exp2(s - shift[:, None])
        rescale = tl.exp2(maximum - shift)
        maximum = larger
        block_total = tl.sum(p, axis=1)
        mean = tl.sum(p * ds, axis=1) / tl.where(block_total == 0.0, 1.0, block_total)
        centre = tl.where(first == 0, mean, centre)
        weights = p.to(v.dtype)
        tangents = (p * (ds - centre[:, None])).to(v.dtype)
        total = total * rescale + block_total
        # What do's sum is given is what is summed here, rounded alike, so that what all values share cancels too.
        moved = moved * rescale + tl.sum(tangents.to(tl.float32), axis=1)
        o = tl.dot(weights, v, o * rescale[:, None], input_precision="ieee")
        do = tl.dot(tangents, v, do * rescale[:, None], input_precision="ieee")
        if REST > 0:
            o_more = tl.dot(weights, v_more, o_more * rescale[:, None], input_precision="ieee")
            do_more = tl.dot(tangents, v_more, do_more * rescale[:, None], input_precision="ieee")

    over = 1.0 / tl.where(total == 0.0, 1.0, total)[:, None]
    out = ((batch * num_queries + rows) * num_heads + head)[:, None] * D
    o *= over
    do = do * over - (moved[:, None] * over) * o
    tl.store(o_ptr + out + columns[None, :], o.to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(do_ptr + out + columns[None, :], do.to(do_ptr.dtype.element_ty), mask=inside)
    if REST > 0:
        o_more *= over
        do_more = do_more * over - (moved[:, None] * over) * o_more
        tl.store(o_ptr + out + more[None, :], o_more.to(o_ptr.dtype.element_ty), mask=inside_more)
        tl.store(do_ptr + out + more[None, :], do_more.to(do_ptr.dtype.element_ty), mask=inside_more)


@functools.cache
def _columns(width: int) -> tuple[int, int]:
    """The two parts in which a head's columns are held, the second possibly empty.

    72 is 64 and 8 (16 with padding), a third less than 128; what lies nearer to the next power of two takes that.
    """
    main = max(16, triton.next_power_of_2(width))
    if main > 32 and main // 2 + 16 >= width:
        main //= 2
    return main, 16 if width > main else 0


@torch.library.custom_op("ddx::cross_attention_dual", mutates_args=())
def _cross_attention_dual(
    q: Tensor, dq: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    q, dq, k, v = (value if value.stride(-1) == 1 else value.contiguous() for value in (q, dq, k, v))
    batch, num_queries, num_heads, width = q.shape
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    do = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kind = "none" if mask is None else "keep" if mask.dtype == torch.bool else "bias"
    if mask is not None:
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        mask = mask.view(torch.uint8) if kind == "keep" else mask
    main, rest = _columns(width)
    strides = [stride for value in (q, dq, k, v) for stride in value.stride()[:3]]
    launch = FLOAT32 if q.dtype == torch.float32 else HALF if main < 128 else WIDE
    options = launch.options(q.device)
    _dual_kernel.launch(
        (blocks(num_queries, options["BLOCK_N"]) * batch * num_heads,),
        q.device,
        options.joined(D=width, MAIN=main, REST=rest, MASK=kind, ALIGNMENT=math.gcd(8, *strides)),
        q,
        dq,
        k,
        v,
        q if mask is None else mask,  # a pointer of some kind, not read without a mask
        o,
        do,
        num_queries,
        k.shape[1],
        num_heads,
        scale,
        *strides,
        0 if mask is None else mask.stride(0),
    )
    return o, do


@_cross_attention_dual.register_fake
def _(q: Tensor, dq: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape)
