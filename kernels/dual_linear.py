"""A linear layer and its tangent: y = x Wᵀ + b, dy = dx Wᵀ. Two matrix products, no kernel of our own.

Two products are two forwards, with the bias in the epilogue of the first and nothing copied; one product over
cat(x, dx) adds the copy and a pass over y for the bias (by bytes, 0.2 and 0.3 of a forward of `[4096, 1152]` ×
`[1152, 3456]` in bfloat16 on an H200). All it could save is a part of a wave of tiles, and there it saves none: 864
tiles of 128 × 128 take 132 multiprocessors 7 rounds, 1728 take 14.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def dual_linear(x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x Wᵀ + b, dx Wᵀ), both `[..., M]`; weight and bias are constants. Autocast casts as in a linear layer.

    x, dx: `[..., K]`, one shape; weight: `[M, K]`; bias: `[M]` or None. Raises ValueError for shapes that do not fit.
    """
    if dx.shape != x.shape:
        raise ValueError(f"x and dx must have one shape, got {tuple(x.shape)} and {tuple(dx.shape)}")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight must be [M, {x.shape[-1]}], got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    return F.linear(x, weight, bias), F.linear(dx, weight)


def is_untouched(module: nn.Module) -> bool:
    """Whether calling `module` runs its class's `forward` and nothing else.

    Not so with hooks, and with a `forward` put over the class's (accelerate's offloading does that).
    """
    return "forward" not in vars(module) and not any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling `module` is `F.linear(x, module.weight, module.bias)` on plain tensors and nothing else.

    Subclasses and wrappers of the layer or of its weight (LoRA, quantised and parametrised layers) are not plain.
    """
    if type(module) is not nn.Linear or not is_untouched(module):
        return False
    weight: object = module.weight
    return not is_traceable_wrapper_subclass(weight)


def dual_module(module: nn.Module, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """(module(x), its tangent for the tangent dx of x) for any module of one tensor.

    A plain linear layer takes :func:`dual_linear` and a dropout that drops nothing is passed by; all else, LoRA among
    it, is differentiated by `torch.func.jvp`, with one draw of whatever it draws. Raises what these raise.
    """
    if is_plain_linear(module):
        return dual_linear(x, dx, module.weight, module.bias)  # type: ignore[arg-type]  # both are tensors
    if type(module) is nn.Dropout and is_untouched(module) and (module.p == 0 or not module.training):
        return x, dx
    y, dy = torch.func.jvp(module, (x,), (dx,))  # type: ignore[misc]  # no auxiliary output
    return y, dy
