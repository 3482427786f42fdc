"""ReLU linear attention, SANA's self-attention: forward and backward (Xie et al. 2024; Cai et al. 2022).

    q, k ← relu(q), relu(k);   S = Σ v kᵀ,  z = Σ k;   o = S q / den,  den = z·q + 1e-15

    backward   gn = g / den,  gd = -(g·o) / den;   dq = Sᵀ gn + z gd,  dS = Σ gn qᵀ,  dz = Σ gd q
               dk = dSᵀ v + dz,  dv = dS k;   dq and dk are zero where the ReLU was

A program owns one head of one picture and sweeps over its tokens twice: the first sweep leaves the state S, z in
registers, the second uses it. So q, k and v are read once and o is written once. With QK norm (RMSNorm over all heads
of a token, as in SANA-Sprint) a small kernel leaves each token's rho behind, and q and k are normalised as they are
loaded. Queries, keys and values come packed, as one projection gives them, so that their gradient is one tensor too.

Products with the state keep its float32: TF32 is enough for bfloat16, float16 takes three TF32 products.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.launch import Constants, Kernel, Launch
from ddx.kernels.rms_norm import rms_norm_backward_into, rms_norm_reference

LARGEST_HEAD = 64  # channels for whose state there are registers
TINY = 1e-15  # diffusers' own: a query without a positive channel gives zero, not NaN

# Larger tiles spill: a program holds the state and several tiles in registers. The defaults do in no dtype. Each is the
# one of which most programs are resident: in bfloat16 on an H200 792 of the forward pass and 396 of the backward pass,
# where 16 images of 36 heads are 576 programs. In float32 four warps spill.
TILES = (
    {"BLOCK_N": 16, "num_warps": 4},
    {"BLOCK_N": 32, "num_warps": 8},
    {"BLOCK_N": 32, "num_warps": 4},
    {"BLOCK_N": 64, "num_warps": 8},
)
FORWARD = Launch("relu_linear_attention", default=TILES[2], candidates=TILES)
BACKWARD = Launch("relu_linear_attention_backward", default=TILES[2], candidates=TILES)
FORWARD_FLOAT32 = Launch("relu_linear_attention_float32", default=TILES[1], candidates=TILES[:2])
BACKWARD_FLOAT32 = Launch("relu_linear_attention_backward_float32", default=TILES[1], candidates=TILES[:2])
STATISTICS = Launch("relu_linear_attention_statistics", default={"num_warps": 4}, candidates=({"num_warps": 8},))

_PRECISION = {torch.float32: "ieee", torch.float16: "tf32x3", torch.bfloat16: "tf32"}


def relu_linear_attention_reference(
    qkv: Tensor, *, q_weight: Tensor | None = None, k_weight: Tensor | None = None, norm_eps: float = 1e-5
) -> Tensor:
    """The attention in plain torch, as diffusers computes it; see :func:`relu_linear_attention`."""
    compute = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    q, k, v = qkv.unbind(2)
    q, k = _normalised(q, q_weight, norm_eps), _normalised(k, k_weight, norm_eps)
    q, k, v = (value.to(compute).transpose(1, 2) for value in (F.relu(q), F.relu(k), v))  # [B, H, N, d]
    state = v.transpose(-1, -2) @ k
    denominator = q @ k.sum(dim=2, keepdim=True).transpose(-1, -2) + TINY
    return ((q @ state.transpose(-1, -2)) / denominator).transpose(1, 2).to(qkv.dtype)


def relu_linear_attention(
    qkv: Tensor, *, q_weight: Tensor | None = None, k_weight: Tensor | None = None, norm_eps: float = 1e-5
) -> Tensor:
    """The attention of every head, ``[B, N, H, d]`` in qkv's dtype; differentiable by all three tensors.

    qkv: ``[B, N, 3, H, d]``, queries, keys and values; the last axis of stride 1, the others of any. q_weight,
    k_weight: ``[H * d]``, both or neither: the weights of an RMSNorm of queries and keys over all heads of a token.
    A head of more than 64 channels takes the reference. Raises ValueError for shapes that do not fit.
    """
    check(qkv, q_weight, k_weight)
    if qkv.shape[4] > LARGEST_HEAD or not dispatch.use_triton(qkv, q_weight, k_weight):
        return relu_linear_attention_reference(qkv, q_weight=q_weight, k_weight=k_weight, norm_eps=norm_eps)
    o: Tensor = _attention(qkv, q_weight, k_weight, norm_eps)[0]
    return o


def check(qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> None:
    """Raise ValueError for shapes that do not fit."""
    if qkv.ndim != 5 or qkv.shape[2] != 3 or qkv.numel() == 0:
        raise ValueError(f"qkv must be [B, N, 3, H, d] and not empty, got {tuple(qkv.shape)}")
    if (q_weight is None) != (k_weight is None):
        raise ValueError("queries and keys are normalised together: give both weights or neither")
    width = qkv.shape[3] * qkv.shape[4]
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and weight.shape != (width,):
            raise ValueError(f"{name} must be [{width}], got {tuple(weight.shape)}")


def _normalised(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else rms_norm_reference(x.flatten(2), weight, eps=eps).view_as(x)


@triton.jit
def relu(x):  # type: ignore[no-untyped-def]
    """What is not negative."""
    return tl.where(x < 0, 0.0, x).to(x.dtype)  # a NaN stays one


@triton.jit  # type: ignore[untyped-decorator]
def load_normalised(at, rho_ptr, tokens, inside, weight, NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of queries or keys ``[BLOCK_N, BLOCK_D]``, normalised and rounded as a norm of its own would."""
    x = tl.load(at, mask=inside, other=0.0)
    if NORM:
        rho = tl.load(rho_ptr + tokens, mask=tl.max(inside.to(tl.int32), axis=1) > 0, other=0.0)
        x = (x.to(tl.float32) * rho[:, None] * weight[None, :]).to(x.dtype)
    return x


@Kernel
def _linear_attention_statistics_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    dqkv_ptr,
    rho_ptr,
    mean_ptr,
    num_rows,
    token_stride,
    part_stride,
    dtoken_stride,
    dpart_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TANGENT: tl.constexpr,
):
    """Of the queries (0) or keys (1) of one token: rho, and with TANGENT the mean of x^ dx."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(qkv_ptr + token * token_stride + part * part_stride + columns, mask=inside, other=0.0).to(tl.float32)
    rho = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    tl.store(rho_ptr + part * num_rows + token, rho)
    if TANGENT:
        at = dqkv_ptr + token * dtoken_stride + part * dpart_stride + columns
        dx = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        tl.store(mean_ptr + part * num_rows + token, tl.sum(x * rho * dx, axis=0) / WIDTH)


@Kernel
def _linear_attention_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    rho_ptr,
    state_ptr,
    o_ptr,
    num_rows,
    num_tokens,
    num_heads,
    batch_stride,
    token_stride,
    part_stride,
    head_stride,
    tiny,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One head of one picture. Leaves S and z, float32 ``[d + 1, d]``, for the backward pass."""
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // num_heads, program % num_heads
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < D
    q_ptr = qkv_ptr + batch * batch_stride + head * head_stride
    k_ptr, v_ptr = q_ptr + part_stride, q_ptr + 2 * part_stride
    q_rho_ptr = rho_ptr + batch * num_tokens
    k_rho_ptr = q_rho_ptr + num_rows
    q_weight = tl.load(q_weight_ptr + head * D + columns, mask=in_head & NORM, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + head * D + columns, mask=in_head & NORM, other=0.0).to(tl.float32)

    state = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)  # of value and key channel
    z = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & in_head[None, :]
        offsets = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        k = relu(load_normalised(k_ptr + offsets, k_rho_ptr, tokens, inside, k_weight, NORM))
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0)
        state = tl.dot(tl.trans(v), k, state, input_precision="ieee")
        z += tl.sum(k.to(tl.float32), axis=0)
    at = state_ptr + program * (D + 1) * D + columns
    tl.store(at[None, :] + columns[:, None] * D, state, mask=in_head[:, None] & in_head[None, :])
    tl.store(at + D * D, z, mask=in_head)

    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & in_head[None, :]
        offsets = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        q = relu(load_normalised(q_ptr + offsets, q_rho_ptr, tokens, inside, q_weight, NORM)).to(tl.float32)
        denominator = tl.sum(q * z[None, :], axis=1) + tiny
        o = tl.dot(q, tl.trans(state), input_precision=PRECISION) / denominator[:, None]
        to = ((batch * num_tokens + tokens)[:, None] * num_heads + head) * D + columns[None, :]
        tl.store(o_ptr + to, o.to(o_ptr.dtype.element_ty), mask=inside)


@Kernel
def _linear_attention_backward_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    rho_ptr,
    state_ptr,
    gradient_ptr,
    num_rows,
    num_tokens,
    num_heads,
    batch_stride,
    token_stride,
    part_stride,
    head_stride,
    g_batch_stride,
    g_token_stride,
    g_head_stride,
    tiny,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One head of one picture: the gradients of its values, and of its queries and keys as they are after a norm."""
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // num_heads, program % num_heads
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < D
    q_ptr = qkv_ptr + batch * batch_stride + head * head_stride
    k_ptr, v_ptr = q_ptr + part_stride, q_ptr + 2 * part_stride
    g_ptr += batch * g_batch_stride + head * g_head_stride
    q_rho_ptr = rho_ptr + batch * num_tokens
    k_rho_ptr = q_rho_ptr + num_rows
    q_weight = tl.load(q_weight_ptr + head * D + columns, mask=in_head & NORM, other=0.0).to(tl.float32)
    k_weight = tl.load(k_weight_ptr + head * D + columns, mask=in_head & NORM, other=0.0).to(tl.float32)
    at = state_ptr + program * (D + 1) * D + columns
    state = tl.load(at[None, :] + columns[:, None] * D, mask=in_head[:, None] & in_head[None, :], other=0.0)
    z = tl.load(at + D * D, mask=in_head, other=0.0)
    width = num_heads * D

    dstate = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    dz = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & in_head[None, :]
        offsets = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        q = relu(load_normalised(q_ptr + offsets, q_rho_ptr, tokens, inside, q_weight, NORM)).to(tl.float32)
        g = tl.load(g_ptr + tokens.to(tl.int64)[:, None] * g_token_stride + columns[None, :], mask=inside, other=0.0)
        denominator = tl.sum(q * z[None, :], axis=1) + tiny
        gn = g.to(tl.float32) / denominator[:, None]
        along = tl.dot(gn, state, input_precision=PRECISION)  # Sᵀ gn, so q · along = gn · S q = g · o
        gd = -tl.sum(along * q, axis=1) / denominator
        dq = tl.where(q > 0, along + gd[:, None] * z[None, :], 0.0)
        to = ((batch * num_tokens + tokens)[:, None] * 3 * num_heads + head) * D + columns[None, :]
        tl.store(gradient_ptr + to, dq.to(gradient_ptr.dtype.element_ty), mask=inside)
        dstate = tl.dot(tl.trans(gn), q, dstate, input_precision=PRECISION)
        dz += tl.sum(gd[:, None] * q, axis=0)

    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & in_head[None, :]
        offsets = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        k = relu(load_normalised(k_ptr + offsets, k_rho_ptr, tokens, inside, k_weight, NORM)).to(tl.float32)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        dk = tl.where(k > 0, tl.dot(v, dstate, input_precision=PRECISION) + dz[None, :], 0.0)
        dv = tl.dot(k, tl.trans(dstate), input_precision=PRECISION)
        to = ((batch * num_tokens + tokens)[:, None] * 3 * num_heads + head) * D + columns[None, :] + width
        tl.store(gradient_ptr + to, dk.to(gradient_ptr.dtype.element_ty), mask=inside)
        tl.store(gradient_ptr + to + width, dv.to(gradient_ptr.dtype.element_ty), mask=inside)


def in_place(x: Tensor, whole_rows: bool) -> Tensor:
    """x itself if a kernel can read it: channels of stride 1, and with a norm the heads of a token side by side."""
    *_, head_stride, channel_stride = x.stride()
    batch_is_rows = x.stride(0) == x.shape[1] * x.stride(1) or len(x) == 1
    if channel_stride == 1 and (not whole_rows or (head_stride == x.shape[4] and batch_is_rows)):
        return x
    return x.contiguous()


def statistics(qkv: Tensor, dqkv: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """rho of queries and keys, float32 ``[2, B * N]``, and of their tangents the mean of x^ dx."""
    batch, num_tokens, _, heads, channels = qkv.shape
    rho = torch.empty((2, batch * num_tokens), dtype=torch.float32, device=qkv.device)
    mean = torch.empty((0 if dqkv is None else 2, batch * num_tokens), dtype=torch.float32, device=qkv.device)
    tangent = qkv if dqkv is None else dqkv
    _linear_attention_statistics_kernel.launch(
        (batch * num_tokens, 2),
        qkv.device,
        _statistics_constants(STATISTICS.options(qkv.device), heads * channels, dqkv is not None),
        qkv,
        tangent,
        rho,
        mean,
        batch * num_tokens,
        qkv.stride(1),
        qkv.stride(2),
        tangent.stride(1),
        tangent.stride(2),
        eps,
    )
    return rho, mean


@functools.cache
def _statistics_constants(options: Constants, width: int, tangent: bool) -> Constants:
    return options.joined(WIDTH=width, BLOCK=triton.next_power_of_2(width), TANGENT=tangent)


@functools.cache
def constants(options: Constants, channels: int, dtype: torch.dtype, norm: bool) -> Constants:
    """What every kernel over heads of so many channels is compiled with."""
    return options.joined(
        D=channels,
        BLOCK_D=max(16, triton.next_power_of_2(channels)),  # the smallest matrix product
        NORM=norm,
        PRECISION=_PRECISION[dtype],
    )


@torch.library.custom_op("ddx::relu_linear_attention", mutates_args=())
def _attention(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(o, the state float32 ``[B, H, d + 1, d]``, rho float32 ``[2, B * N]`` or ``[0]`` without a norm)."""
    qkv = in_place(qkv, q_weight is not None)
    batch, num_tokens, _, heads, channels = qkv.shape
    o = torch.empty((batch, num_tokens, heads, channels), dtype=qkv.dtype, device=qkv.device)
    state = torch.empty((batch, heads, channels + 1, channels), dtype=torch.float32, device=qkv.device)
    rho = torch.empty((0,), dtype=torch.float32, device=qkv.device)
    if q_weight is not None:
        rho, _ = statistics(qkv, None, eps)
    launch = FORWARD_FLOAT32 if qkv.dtype == torch.float32 else FORWARD
    _linear_attention_kernel.launch(
        (batch * heads,),
        qkv.device,
        constants(launch.options(qkv.device), channels, qkv.dtype, q_weight is not None),
        qkv,
        o if q_weight is None else q_weight.contiguous(),  # a pointer of some kind, not read without a norm
        o if k_weight is None else k_weight.contiguous(),
        rho,
        state,
        o,
        batch * num_tokens,
        num_tokens,
        heads,
        *qkv.stride()[:4],
        TINY,
    )
    return o, state, rho


@_attention.register_fake
def _(qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_tokens, _, heads, channels = qkv.shape
    state = qkv.new_empty((batch, heads, channels + 1, channels), dtype=torch.float32)
    rho = (0,) if q_weight is None else (2, batch * num_tokens)
    return qkv.new_empty((batch, num_tokens, heads, channels)), state, qkv.new_empty(rho, dtype=torch.float32)


@torch.library.custom_op("ddx::relu_linear_attention_backward", mutates_args=())
def _attention_backward(
    g: Tensor,
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    state: Tensor,
    rho: Tensor,
    weight_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of qkv, contiguous; gradients of the weights float32 ``[H * d]``, or ``[0]`` if not asked for)."""
    qkv = in_place(qkv, q_weight is not None)
    g = g if g.stride(3) == 1 else g.contiguous()
    batch, num_tokens, _, heads, channels = qkv.shape
    gradient = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    launch = BACKWARD_FLOAT32 if qkv.dtype == torch.float32 else BACKWARD
    _linear_attention_backward_kernel.launch(
        (batch * heads,),
        qkv.device,
        constants(launch.options(qkv.device), channels, qkv.dtype, q_weight is not None),
        g,
        qkv,
        g if q_weight is None else q_weight.contiguous(),
        g if k_weight is None else k_weight.contiguous(),
        rho,
        state,
        gradient,
        batch * num_tokens,
        num_tokens,
        heads,
        *qkv.stride()[:4],
        *g.stride()[:3],
        TINY,
    )
    found = [torch.empty((0,), dtype=torch.float32, device=qkv.device) for _ in range(2)]
    if q_weight is not None:
        for part, weight in enumerate((q_weight, k_weight)):
            into = gradient[:, :, part].flatten(2)  # each row is read before it is written
            found[part] = rms_norm_backward_into(
                into, into, qkv[:, :, part].flatten(2), weight, rho[part], weight_gradients
            )
    return gradient, found[0], found[1]


@_attention_backward.register_fake
def _(
    g: Tensor,
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    state: Tensor,
    rho: Tensor,
    weight_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width = qkv.shape[3] * qkv.shape[4] if weight_gradients and q_weight is not None else 0
    gradients = [qkv.new_empty(width, dtype=torch.float32) for _ in range(2)]
    return qkv.new_empty(qkv.shape), gradients[0], gradients[1]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
    qkv, q_weight, k_weight, state, rho = ctx.saved_tensors
    wanted = any(ctx.needs_input_grad[1:3])
    gradient, gq, gk = _attention_backward(g, qkv, q_weight, k_weight, state, rho, wanted)
    if not wanted:
        return gradient, None, None, None
    return gradient, gq.to(q_weight.dtype), gk.to(k_weight.dtype), None


_attention.register_autograd(_backward, setup_context=_save)
