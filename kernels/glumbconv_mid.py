"""The middle of SANA's GLUMBConv feed-forward, channels last: SiLU, depthwise 3x3 convolution, GLU.

    s = silu(x)       h = conv3x3(s) + bias, a kernel for each of 2C channels, zeros around the image
    y = a silu(b)     (a, b) = the halves of h's channels
    da = g silu(b)    db = g a silu'(b)    dx = silu'(x) conv3x3_transposed(da, db)
    dw[k] = sum over pixels of s at its neighbour k times dh    dbias = sum of dh
    dy = silu(b) a' + a silu'(b) b'    (a', b') = conv3x3(silu'(x) x')          silu'(t) = sigma + t sigma (1 - sigma)

The feed-forward is that of Xie et al. 2024 (SANA, arXiv:2410.10629, section 2.2). Arithmetic is float32, and only the
inputs are kept for the backward pass. The gradients of weight and bias are added in two stages, in a fixed order, so
repeated runs give the same bits. How the kernels walk over an image is in `glumbconv_kernels.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.glumbconv_kernels import dual_kernel, forward_kernel, transposed_kernel
from ddx.kernels.launch import Constants, Launch, blocks


def _tile(rows: int, columns: int = 32) -> dict[str, int]:
    """A warp of two channels a thread: four bytes a load in bfloat16, and 64 divides SANA's 2880 and 5760 channels."""
    return {"BLOCK_C": 64, "ROWS": rows, "COLUMNS": columns, "num_warps": 1}


FORWARD = Launch("glumbconv_mid", default=_tile(8), candidates=(_tile(4), _tile(8, 16)))
BACKWARD = Launch("glumbconv_mid_backward", default=_tile(4), candidates=(_tile(2), _tile(4, 16)))
TRANSPOSED = Launch("glumbconv_mid_transposed", default=_tile(8), candidates=(_tile(4), _tile(8, 16)))
DUAL = Launch("glumbconv_mid_dual", default=_tile(4), candidates=(_tile(2), _tile(4, 16)))


def glumbconv_mid_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What diffusers computes, in x's dtype; see :func:`glumbconv_mid`."""
    a, b = _convolve(F.silu(x), weight, bias).chunk(2, dim=-1)
    return (a * F.silu(b)).to(x.dtype)


def glumbconv_mid_dual_reference(
    x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The operation and its tangent in plain torch; see :func:`glumbconv_mid_dual`."""
    a, b = _convolve(F.silu(x), weight, bias).chunk(2, dim=-1)
    da, db = _convolve(_silu_slope(x) * dx, weight, None).chunk(2, dim=-1)
    return (a * F.silu(b)).to(x.dtype), (da * F.silu(b) + a * _silu_slope(b) * db).to(dx.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def glumbconv_mid(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """SiLU, depthwise 3x3 convolution and GLU of x: `[B, H, W, C]` in x's dtype; differentiable by all three.

    x: `[B, H, W, 2C]`, the last axis of stride 1; weight: `[2C, 1, 3, 3]`; bias: `[2C]` or None, both of any float
    dtype. Raises ValueError for shapes that do not fit.
    """
    _check(x, weight, bias)
    if not dispatch.use_triton(x, weight, bias):
        return glumbconv_mid_reference(x, weight, bias)
    y: Tensor = _glumbconv_mid(x, weight, bias)
    return y


def glumbconv_mid_dual(x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(:func:`glumbconv_mid` of x, its tangent for the tangent dx of x), both `[B, H, W, C]`; without gradients.

    x, dx: equal shapes. Raises ValueError for shapes that do not fit.
    """
    _check(x, weight, bias)
    if dx.shape != x.shape:
        raise ValueError(f"x and dx must have one shape, got {tuple(x.shape)} and {tuple(dx.shape)}")
    if not dispatch.use_triton(x, dx, weight, bias):
        return glumbconv_mid_dual_reference(x, dx, weight, bias)
    y, dy = _glumbconv_mid_dual(x, dx, weight, bias)
    return y, dy


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4 or x.numel() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x must be [B, H, W, 2C] and not empty, got {tuple(x.shape)}")
    channels = x.shape[-1]
    if weight.shape != (channels, 1, 3, 3):
        raise ValueError(f"weight must be [{channels}, 1, 3, 3], got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must be [{channels}], got {tuple(bias.shape)}")


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _programs(x: Tensor, channels: int, options: Constants) -> tuple[int, int]:
    """(tiles of pixels, programs) for `channels` channels of x `[B, H, W, ...]`."""
    batch, height, width, _ = x.shape
    tiles = batch * blocks(height, options["ROWS"]) * blocks(width, options["COLUMNS"])
    return tiles, tiles * blocks(channels, options["BLOCK_C"])


@torch.library.custom_op("ddx::glumbconv_mid", mutates_args=())
def _glumbconv_mid(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = _channels_last(x)
    batch, height, width, channels = x.shape
    y = torch.empty((batch, height, width, channels // 2), dtype=x.dtype, device=x.device)
    _launch_forward(FORWARD, x, x, weight, bias, y, backward=False)
    return y


def _launch_forward(
    launch: Launch, x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, backward: bool
) -> None:
    options = launch.options(x.device)
    half = x.shape[-1] // 2
    weight = weight.contiguous()
    forward_kernel.launch(
        (_programs(x, half, options)[1],),
        x.device,
        options.joined(C=half, BIASED=bias is not None, BACKWARD=backward),
        x,
        g,
        weight,
        weight if bias is None else bias.contiguous(),  # a pointer of some kind, not read without a bias
        out,
        *x.shape[1:3],
        x.stride()[:3],
        g.stride()[:3],
    )


@_glumbconv_mid.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:3], x.shape[3] // 2))


@torch.library.custom_op("ddx::glumbconv_mid_backward", mutates_args=())
def glumbconv_mid_backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, weight_gradient: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of x, contiguous; of the nine weights and the bias, float32 `[10, 2C]`, or `[0, 2C]` if not asked for).

    The gradient of h is stored between two passes, in x's dtype as autograd's would be.
    """
    x = _channels_last(x)
    _, height, width, channels = x.shape
    dh = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_forward(BACKWARD, x, _channels_last(g), weight, bias, dh, backward=True)
    options = TRANSPOSED.options(x.device)
    tiles, programs = _programs(x, channels, options)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = torch.empty((tiles if weight_gradient else 0, 10, channels), dtype=torch.float32, device=x.device)
    transposed_kernel.launch(
        (programs,),
        x.device,
        options.joined(C=channels, WEIGHT_GRADIENT=weight_gradient),
        dh,
        x,
        weight.contiguous(),
        dx,
        parts,
        height,
        width,
        x.stride()[:3],
    )
    return dx, parts.sum(dim=0) if weight_gradient else parts.reshape(0, channels)


@glumbconv_mid_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, weight_gradient: bool) -> tuple[Tensor, Tensor]:
    sums = x.new_empty((10 if weight_gradient else 0, x.shape[3]), dtype=torch.float32)
    return x.new_empty(x.shape), sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, weight, bias = ctx.saved_tensors
    _, of_weight, of_bias = ctx.needs_input_grad
    dx, sums = glumbconv_mid_backward(g, x, weight, bias, of_weight or of_bias)
    dweight = sums[:9].t().reshape(weight.shape).to(weight.dtype) if of_weight else None
    return dx, dweight, sums[9].to(bias.dtype) if of_bias else None


_glumbconv_mid.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("ddx::glumbconv_mid_dual", mutates_args=())
def _glumbconv_mid_dual(x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    x, dx = _channels_last(x), _channels_last(dx)
    shape = (*x.shape[:3], x.shape[3] // 2)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    dy = torch.empty(shape, dtype=dx.dtype, device=x.device)
    options = DUAL.options(x.device)
    weight = weight.contiguous()
    dual_kernel.launch(
        (_programs(x, shape[3], options)[1],),
        x.device,
        options.joined(C=shape[3], BIASED=bias is not None),
        x,
        dx,
        weight,
        weight if bias is None else bias.contiguous(),
        y,
        dy,
        *x.shape[1:3],
        x.stride()[:3],
        dx.stride()[:3],
    )
    return y, dy


@_glumbconv_mid_dual.register_fake
def _(x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:3], x.shape[3] // 2)
    return x.new_empty(shape), dx.new_empty(shape)
