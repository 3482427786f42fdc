"""Frozen layers whose weights are stored in 8 or 4 bits and widened when they compute, as in QLoRA.

    8   whole numbers from -127 to 127, with one scale for each output: the largest weight's (torch alone)
    4   NormalFloat (Dettmers et al. 2023, arXiv:2305.14314), with one scale for each 64 weights (bitsandbytes)

Gradients pass through a layer to its input: the weights are widened again for them and not kept. What a layer computes
is what a plain one computes with the widened weights. Activations are not quantised.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddx.errors import UsageError

BITS = (8, 4)
BLOCK = 64  # weights that share a scale in 4 bits
_conv2d_input: Any = importlib.import_module("torch.nn.grad").conv2d_input  # which torch gives no types for
_SMALLEST = 4096  # weights: layers with fewer stay as they are


class Quantised(nn.Module):
    """What both kinds of layers have: `packed` and `scales` in place of a weight, which `weight` widens."""

    packed: nn.Parameter
    scales: nn.Parameter
    bits: int
    shape: torch.Size
    bias: Any

    @property
    def weight(self) -> Tensor:
        """The weights, widened, in float32."""
        return self.widened(torch.float32)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Return the weights in `dtype`."""
        return widen(self.packed, self.scales, self.bits, self.shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the plain layer computes with the widened weights, in the dtype of autocast or of x."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x, bias = x.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            found: Tensor = _Through.apply(x, self.packed, self.scales, bias, self)
            return found
        return self.product(x, self.widened(dtype), bias)

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer computes."""

    @abstractmethod
    def back(self, gradient: Tensor, x_shape: torch.Size, weight: Tensor) -> Tensor:
        """Return the gradient of the input `[*x_shape]` from that of the output."""


class QuantisedLinear(Quantised, nn.Linear):  # type: ignore[override]  # its weight is made when it is read
    """A linear layer."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`Quantised.product`."""
        return functional.linear(x, weight, bias)

    def back(self, gradient: Tensor, x_shape: torch.Size, weight: Tensor) -> Tensor:
        """See :meth:`Quantised.back`."""
        return gradient @ weight


class QuantisedConv2d(Quantised, nn.Conv2d):  # type: ignore[override]  # likewise
    """A convolution. What is made by its class, as peft makes the matrices beside one, is a plain one."""

    def __new__(cls, *sizes: Any, **settings: Any) -> Any:
        """Return a plain convolution of these sizes, or an empty one of this class."""
        return nn.Conv2d(*sizes, **settings) if sizes else super().__new__(cls)  # a copy is made without sizes

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :meth:`Quantised.product`."""
        found: Tensor = self._conv_forward(x, weight, bias)
        return found

    def back(self, gradient: Tensor, x_shape: torch.Size, weight: Tensor) -> Tensor:
        """See :meth:`Quantised.back`."""
        settings: Any = (self.stride, self.padding, self.dilation, self.groups)
        found: Tensor = _conv2d_input(x_shape, weight, gradient, *settings)
        return found


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, layer: Quantised) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return layer.product(x, layer.widened(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        layer: Quantised = ctx.layer
        packed, scales = ctx.saved_tensors
        weight = widen(packed, scales, layer.bits, layer.shape, ctx.dtype)
        return layer.back(gradient.to(ctx.dtype), ctx.shape, weight), None, None, None, None


def quantise(network: nn.Module, blocks: Iterable[nn.Module], bits: int, device: torch.device) -> nn.Module:
    """Store the weights of the linears and convolutions of `blocks`, which are in `network`, in 8 or 4 bits.

    In place; the whole network comes to `device`, a layer at a time, so that it is never there in full. Returns it.
    Raises UsageError where 4 bits need a package that is not here.
    """
    for layer in dict.fromkeys(_layers(blocks)):
        value = layer.weight.data.to(device)
        packed, scales = pack(value, bits)
        shape = value.shape
        del layer._parameters["weight"], value
        layer.__class__ = QuantisedLinear if isinstance(layer, nn.Linear) else QuantisedConv2d
        layer.bits, layer.shape = bits, shape
        layer.packed = nn.Parameter(packed, requires_grad=False)
        layer.scales = nn.Parameter(scales, requires_grad=False)
    return network.to(device)


def quantised_layers(network: nn.Module) -> Iterator[tuple[str, Quantised]]:
    """Yield the layers in 8 or 4 bits, with their names."""
    for name, module in network.named_modules():
        if isinstance(module, Quantised):
            yield name, module


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the two tensors that stand for a weight in 8 or 4 bits."""
    return {name: value for name, value in state.items() if not name.endswith((".packed", ".scales"))}


def require_4_bits() -> None:
    """Raise UsageError where 4 bits cannot be had."""
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise UsageError(
            "base_bits = 4 needs the package bitsandbytes",
            hint="pip install 'ddx[quantised]', or give --base-bits 8, which needs none",
        ) from error


def pack(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return a weight in 8 or 4 bits: int8 of its shape and float32 `[out]`, or uint8 and float32 of blocks."""
    if bits == 8:
        rows = weight.float().flatten(1)
        scales = rows.abs().amax(dim=1) / 127.0
        scales = torch.where(scales > 0.0, scales, 1.0)
        return (rows / scales[:, None]).round_().to(torch.int8).reshape(weight.shape), scales
    if _is_fake(weight):  # shapes alone: the package need not be here
        size = weight.numel()
        return weight.new_empty(-(-size // 2), 1, dtype=torch.uint8), weight.new_empty(
            -(-size // BLOCK), dtype=torch.float32
        )
    require_4_bits()
    bnb: Any = importlib.import_module("bitsandbytes.functional")
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    return packed, state.absmax


def widen(packed: Tensor, scales: Tensor, bits: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the weight of a shape, in `dtype`, that :func:`pack` packed."""
    if bits == 8:
        weight = packed.to(dtype)
        return weight.mul_(scales.to(dtype).reshape(-1, *(1,) * (len(shape) - 1)))
    if _is_fake(packed):
        return packed.new_empty(shape, dtype=dtype)
    importlib.import_module("bitsandbytes.functional")  # registers the operation
    found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(packed, scales.float(), BLOCK, "nf4", list(shape), dtype)
    return found


def _is_fake(value: Tensor) -> bool:
    """Whether a tensor has a shape and no values, as where memory is counted."""
    return type(value.data).__name__ == "FakeTensor"


def _layers(blocks: Iterable[nn.Module]) -> Iterator[Any]:
    for block in blocks:
        for module in block.modules():
            if type(module) in (nn.Linear, nn.Conv2d) and _is_dense(module):
                yield module


def _is_dense(layer: Any) -> bool:
    return getattr(layer, "groups", 1) == 1 and layer.weight.numel() >= _SMALLEST
