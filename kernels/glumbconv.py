"""SANA's GLUMBConv feed-forward over channels-last activations: linears around :func:`glumbconv_mid`.

`glumbconv_forward` stands in for the `forward` of diffusers' `GLUMBConv`, whose parameters it reads where they are:
nothing of the module changes. A 1x1 convolution is a linear layer over the last axis of `[B, H, W, C]`, which is how
the transformer's tokens lie in memory, so nothing is copied. A layer that does more than its own class says (a LoRA
wrapper, hooks, a parametrization, offloading) is called as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddx.kernels import dispatch
from ddx.kernels.glumbconv_mid import glumbconv_mid, glumbconv_mid_dual


def glumbconv_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """What `module.forward(hidden_states)` of a GLUMBConv returns: `[B, C_out, H, W]`, a view of `[B, H, W, C_out]`.

    hidden_states: `[B, C_in, H, W]`, best a view of `[B, H, W, C_in]`. Under autocast the linears choose the dtype.
    """
    x = hidden_states.permute(0, 2, 3, 1)
    inner = _pointwise(module.conv_inverted, x)
    # The gradient of the last weight needs what goes into it. That is 2.5 activations, and one pass makes it again. A
    # block that is made again as a whole keeps them for as long as its backward pass takes.
    trained = any(parameter.requires_grad for parameter in module.conv_point.parameters())
    if torch.is_grad_enabled() and trained and not dispatch.in_forward_ad() and not _is_checkpointed():
        y = checkpoint(_middle_and_point, module, inner, use_reentrant=False, preserve_rng_state=False)
    else:
        y = _middle_and_point(module, inner)
    if module.norm_type == "rms_norm":
        y = module.norm(y)
    if module.residual_connection:
        y = y + x
    return y.permute(0, 3, 1, 2)


def glumbconv_dual_forward(module: Any, hidden_states: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """(:func:`glumbconv_forward`, its tangent for the tangent of hidden_states), without gradients.

    A module with a norm, or with layers that are more than plain convolutions, is differentiated by `torch.func.jvp`.
    """
    plain = _is_plain_depthwise(module.conv_depth) and all(
        _is_plain_pointwise(layer) for layer in (module.conv_inverted, module.conv_point)
    )
    if module.norm_type is not None or not plain:
        with torch.no_grad():
            found = torch.func.jvp(lambda x: glumbconv_forward(module, x), (hidden_states,), (tangent,))
        return found[0], found[1]
    x, dx = hidden_states.permute(0, 2, 3, 1), tangent.permute(0, 2, 3, 1)
    inverted, depth, point = module.conv_inverted, module.conv_depth, module.conv_point
    inner, inner_tangent = _pointwise(inverted, x), F.linear(dx, inverted.weight[:, :, 0, 0])
    y, dy = glumbconv_mid_dual(inner, inner_tangent, depth.weight, depth.bias)
    y, dy = _pointwise(point, y), F.linear(dy, point.weight[:, :, 0, 0])
    if module.residual_connection:
        y, dy = y + x, dy + dx
    return y.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)


def _middle_and_point(module: Any, inner: Tensor) -> Tensor:
    """What follows conv_inverted, `[B, H, W, 2C]`, to conv_point."""
    if _is_plain_depthwise(module.conv_depth):
        y = glumbconv_mid(inner, module.conv_depth.weight, module.conv_depth.bias)
    else:
        convolved = module.conv_depth(F.silu(inner).permute(0, 3, 1, 2))
        value, gate = convolved.permute(0, 2, 3, 1).chunk(2, dim=-1)
        y = value * F.silu(gate)
    return _pointwise(module.conv_point, y)


def _is_checkpointed() -> bool:
    """Whether what runs now is made again in the backward pass, or is being made again, by torch's checkpoint."""
    if torch.compiler.is_compiling():
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == checkpoint.__module__


def _pointwise(convolution: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of x `[B, H, W, C]`."""
    if not _is_plain_pointwise(convolution):
        called: Tensor = convolution(x.permute(0, 3, 1, 2))
        return called.permute(0, 2, 3, 1)
    assert isinstance(convolution, nn.Conv2d)
    return F.linear(x, convolution.weight[:, :, 0, 0], convolution.bias)


def _is_plain_pointwise(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)
        and _only_forwards(layer)
    )


def _is_plain_depthwise(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.padding_mode == "zeros"
        and _only_forwards(layer)
    )


def _only_forwards(layer: nn.Module) -> bool:
    """Whether calling the layer is its class's forward, no more: no hook, and no forward of its own (offloading)."""
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return not any(hooks) and "forward" not in vars(layer)
