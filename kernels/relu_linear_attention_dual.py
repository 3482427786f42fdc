"""The tangent of ReLU linear attention, beside its output; see :mod:`ddx.kernels.relu_linear_attention`.

    S = Σ v kᵀ,  z = Σ k,  o = S q / den;   dS = Σ (dv kᵀ + v dkᵀ),  dz = Σ dk
    do = ((dS q + S dq) - o (dz·q + z·dq)) / den,   with dq and dk zero where the ReLU is

Again a program owns a head and sweeps twice: both states stay in registers, each of the six inputs is read once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.launch import Kernel, Launch
from ddx.kernels.relu_linear_attention import (
    LARGEST_HEAD,
    TINY,
    check,
    constants,
    in_place,
    load_normalised,
    relu,
    statistics,
)
from ddx.kernels.rms_norm import rms_norm_dual_reference

# Two states and more tiles than the forward pass has; prefetching the next ones as well would spill.
_TILES = (
    {"BLOCK_N": 16, "num_warps": 4, "num_stages": 1},
    {"BLOCK_N": 16, "num_warps": 8},
    {"BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
    {"BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
)
DUAL = Launch("relu_linear_attention_dual", default=_TILES[0], candidates=_TILES)


def relu_linear_attention_dual_reference(
    qkv: Tensor,
    dqkv: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The attention and its tangent in plain torch; see :func:`relu_linear_attention_dual`."""
    compute = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    (q, k, v), (dq, dk, dv) = qkv.to(compute).unbind(2), dqkv.to(compute).unbind(2)
    (q, dq), (k, dk) = _normalised_dual(q, dq, q_weight, norm_eps), _normalised_dual(k, dk, k_weight, norm_eps)
    dq, dk = dq * (q > 0), dk * (k > 0)
    values = (F.relu(q), dq, F.relu(k), dk, v, dv)
    q, dq, k, dk, v, dv = (value.transpose(1, 2) for value in values)  # [B, H, N, d]
    state, z = k.transpose(-1, -2) @ v, k.sum(dim=2, keepdim=True)
    dstate, dz = dk.transpose(-1, -2) @ v + k.transpose(-1, -2) @ dv, dk.sum(dim=2, keepdim=True)
    denominator = (q * z).sum(dim=-1, keepdim=True) + TINY
    o = q @ state / denominator
    do = (q @ dstate + dq @ state - o * (q * dz + dq * z).sum(dim=-1, keepdim=True)) / denominator
    return o.transpose(1, 2).to(qkv.dtype), do.transpose(1, 2).to(dqkv.dtype)


def relu_linear_attention_dual(
    qkv: Tensor,
    dqkv: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(:func:`relu_linear_attention` of qkv, its tangent for the tangent dqkv), both ``[B, N, H, d]``; no gradients.

    The weights have no tangent. Raises ValueError for shapes that do not fit.
    """
    check(qkv, q_weight, k_weight)
    if dqkv.shape != qkv.shape:
        raise ValueError(f"qkv and dqkv must have one shape, got {tuple(qkv.shape)} and {tuple(dqkv.shape)}")
    if qkv.shape[4] > LARGEST_HEAD or not dispatch.use_triton(qkv, dqkv, q_weight, k_weight):
        return relu_linear_attention_dual_reference(qkv, dqkv, q_weight=q_weight, k_weight=k_weight, norm_eps=norm_eps)
    o, do = _attention_dual(qkv, dqkv, q_weight, k_weight, norm_eps)
    return o, do


def _normalised_dual(x: Tensor, dx: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    if weight is None:
        return x, dx
    y, dy = rms_norm_dual_reference(x.flatten(2), dx.flatten(2), weight, eps=eps)
    return y.view_as(x), dy.view_as(dx)


@triton.jit  # type: ignore[untyped-decorator]
def _load_tangent(at, x_at, rho_ptr, mean_ptr, tokens, inside, weight, NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tangent of such a tile: w rho (dx - x^ mean(x^ dx)) with a norm."""
    dx = tl.load(at, mask=inside, other=0.0)
    if NORM:
        kept = tl.max(inside.to(tl.int32), axis=1) > 0
        rho = tl.load(rho_ptr + tokens, mask=kept, other=0.0)
        mean = tl.load(mean_ptr + tokens, mask=kept, other=0.0)
        normal = tl.load(x_at, mask=inside, other=0.0).to(tl.float32) * rho[:, None]
        dx = (weight[None, :] * rho[:, None] * (dx.to(tl.float32) - normal * mean[:, None])).to(dx.dtype)
    return dx


@Kernel
def _linear_attention_dual_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    dqkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    rho_ptr,
    mean_ptr,
    o_ptr,
    do_ptr,
    num_rows,
    num_tokens,
    num_heads,
    batch_stride,
    token_stride,
    part_stride,
    head_stride,
    dbatch_stride,
    dtoken_stride,
    dpart_stride,
    dhead_stride,
    tiny,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One head of one picture: output and tangent."""
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // num_heads, program % num_heads
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < D
    q_ptr = qkv_ptr + batch * batch_stride + head * head_stride
    k_ptr, v_ptr = q_ptr + part_stride, q_ptr + 2 * part_stride
    dq_ptr = dqkv_ptr + batch * dbatch_stride + head * dhead_stride
    dk_ptr, dv_ptr = dq_ptr + dpart_stride, dq_ptr + 2 * dpart_stride
    q_rho_ptr, q_mean_ptr = rho_ptr + batch * num_tokens, mean_ptr + batch * num_tokens
    k_rho_ptr, k_mean_ptr = q_rho_ptr + num_rows, q_mean_ptr + num_rows
    q_weight = tl.load(q_weight_ptr + head * D + columns, mask=in_head & NORM, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + head * D + columns, mask=in_head & NORM, other=0.0).to(tl.float32)

    state = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    dstate = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    z = tl.zeros([BLOCK_D], tl.float32)
    dz = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & in_head[None, :]
        offsets = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        doffsets = tokens.to(tl.int64)[:, None] * dtoken_stride + columns[None, :]
        k = load_normalised(k_ptr + offsets, k_rho_ptr, tokens, inside, k_weight, NORM)
        dk = _load_tangent(dk_ptr + doffsets, k_ptr + offsets, k_rho_ptr, k_mean_ptr, tokens, inside, k_weight, NORM)
        dk = tl.where(k > 0, dk, 0.0).to(k.dtype)
        k = relu(k)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0)
        dv = tl.load(dv_ptr + doffsets, mask=inside, other=0.0)
        state = tl.dot(tl.trans(v), k, state, input_precision="ieee")
        dstate = tl.dot(tl.trans(v), dk, dstate, input_precision="ieee")
        dstate = tl.dot(tl.trans(dv), k, dstate, input_precision="ieee")
        z += tl.sum(k.to(tl.float32), axis=0)
        dz += tl.sum(dk.to(tl.float32), axis=0)

    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & in_head[None, :]
        offsets = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        doffsets = tokens.to(tl.int64)[:, None] * dtoken_stride + columns[None, :]
        q = load_normalised(q_ptr + offsets, q_rho_ptr, tokens, inside, q_weight, NORM)
        dq = _load_tangent(dq_ptr + doffsets, q_ptr + offsets, q_rho_ptr, q_mean_ptr, tokens, inside, q_weight, NORM)
        dq = tl.where(q > 0, dq, 0.0).to(tl.float32)
        q = relu(q).to(tl.float32)
        denominator = tl.sum(q * z[None, :], axis=1) + tiny
        change = tl.sum(q * dz[None, :] + dq * z[None, :], axis=1)
        o = tl.dot(q, tl.trans(state), input_precision=PRECISION) / denominator[:, None]
        do = tl.dot(q, tl.trans(dstate), input_precision=PRECISION)
        do = tl.dot(dq, tl.trans(state), do, input_precision=PRECISION)
        do = (do - o * change[:, None]) / denominator[:, None]
        to = ((batch * num_tokens + tokens)[:, None] * num_heads + head) * D + columns[None, :]
        tl.store(o_ptr + to, o.to(o_ptr.dtype.element_ty), mask=inside)
        tl.store(do_ptr + to, do.to(do_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("ddx::relu_linear_attention_dual", mutates_args=())
def _attention_dual(
    qkv: Tensor, dqkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    norm = q_weight is not None
    qkv, dqkv = in_place(qkv, norm), in_place(dqkv, norm)
    batch, num_tokens, _, heads, channels = qkv.shape
    o = torch.empty((batch, num_tokens, heads, channels), dtype=qkv.dtype, device=qkv.device)
    do = torch.empty(o.shape, dtype=dqkv.dtype, device=qkv.device)
    rho, mean = statistics(qkv, dqkv, eps) if norm else (o, o)
    _linear_attention_dual_kernel.launch(
        (batch * heads,),
        qkv.device,
        constants(DUAL.options(qkv.device), channels, qkv.dtype, norm),
        qkv,
        dqkv,
        o if q_weight is None else q_weight.contiguous(),
        o if k_weight is None else k_weight.contiguous(),
        rho,
        mean,
        o,
        do,
        batch * num_tokens,
        num_tokens,
        heads,
        *qkv.stride()[:4],
        *dqkv.stride()[:4],
        TINY,
    )
    return o, do


@_attention_dual.register_fake
def _(qkv: Tensor, dqkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    batch, num_tokens, _, heads, channels = qkv.shape
    shape = (batch, num_tokens, heads, channels)
    return qkv.new_empty(shape), dqkv.new_empty(shape)
