"""What is measured: one operation, at one size, in one mode, beside what diffusers computes in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["forward", "backward", "dual"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shapes of a SANA transformer at work; the defaults are the 600M model's at 512 pixels."""

    batch: int = 16
    side: int = 16  # tokens a side: pixels / 32
    heads: int = 36  # of 32 channels, linear self-attention
    cross_heads: int = 16
    cross_head_dim: int = 72
    text_tokens: int = 300
    latent_channels: int = 32
    mlp_ratio: float = 2.5

    @property
    def tokens(self) -> int:
        """Image tokens N."""
        return self.side * self.side

    @property
    def width(self) -> int:
        """Channels D of the transformer."""
        return self.heads * 32

    @property
    def activation(self) -> int:
        """Elements of one activation `[B, N, D]`, the unit X of docs/kernels.md."""
        return self.batch * self.tokens * self.width

    def __str__(self) -> str:
        """Name it by what changes."""
        return f"B{self.batch} {32 * self.side}px"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation in one mode.

    `make` draws the inputs by name; for the mode "dual" an input "x" that has a tangent comes with "dx". `stock` is
    what runs without ddx and takes the inputs without tangents; `ours` takes them all and returns the same outputs
    (in the mode "dual" the outputs, then their tangents). `forward` is what a forward pass without tangents runs, where
    `stock` is slower for the sake of `torch.func.jvp`. `varied` names the inputs that are differentiated.
    `moved_elements` counts what must be read and written at least once, in elements of the dtype.
    """

    operation: str
    mode: Mode
    make: Callable[[torch.Generator], Mapping[str, Tensor]]
    ours: Callable[..., Any]
    stock: Callable[..., Any]
    forward: Callable[..., Any] | None = None
    varied: tuple[str, ...] = ("x",)
    moved_elements: int
    flops: int = 0

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """Return the inputs on `device`; floating ones in `dtype`, but for those that `make` draws in float64.

        A strided input keeps its strides: an operation that reads a packed tensor in place is measured doing so.
        """
        with device:  # what `make` draws without naming a device
            made = self.make(torch.Generator(device=device).manual_seed(seed))
            return {name: _cast(value, dtype).to(device) for name, value in made.items()}

    @property
    def eager(self) -> Callable[..., Any]:
        """What runs without ddx in this mode and takes its inputs; tangents by `torch.func.jvp`."""
        return self.stock_dual if self.mode == "dual" else self.stock

    def differentiable_outputs(
        self, function: Callable[..., Any], inputs: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return fresh leaves for the inputs that are varied, and the outputs that depend on them."""
        leaves = {name: inputs[name].detach().requires_grad_() for name in self.varied}
        with torch.enable_grad():
            outputs = as_tuple(function(**{**inputs, **leaves}))
        return list(leaves.values()), [output for output in outputs if output.requires_grad]

    def without_tangents(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs that `stock` takes."""
        tangents = {"d" + name for name in self.varied} if self.mode == "dual" else set[str]()
        return {name: value for name, value in inputs.items() if name not in tangents}

    def stock_dual(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Return outputs and tangents of `stock` by `torch.func.jvp`."""
        constant = self.without_tangents(inputs)

        def of_varied(*values: Tensor) -> Any:
            return self.stock(**{**constant, **dict(zip(self.varied, values, strict=True))})

        primals = tuple(inputs[name] for name in self.varied)
        tangents = tuple(inputs["d" + name] for name in self.varied)
        outputs, derivatives = torch.func.jvp(of_varied, primals, tangents)  # type: ignore[misc]  # no auxiliary
        return (*as_tuple(outputs), *as_tuple(derivatives))


def randn(generator: torch.Generator, *shape: int) -> Tensor:
    """Return unit noise on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    """Return one output or several as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.dtype != torch.float32 or dtype == torch.float32:
        return value
    if 0 in value.stride():  # expanded: several elements in one place, which nothing can be copied to
        return value.to(dtype)
    return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device).copy_(value)
