"""What the losses share: a guard around each sample, and gradients that were made in the forward pass.

A sample whose loss is not finite is dropped: its loss is 0, its gradients are written as zeros (never as NaN x 0), its
neighbours do not see it, and a mask tells which samples went. All of it stays on the device.

The guard ends where the loss does. Where NaN or infinity is in the *activations* of a network, its own backward pass
makes NaN of a zero gradient (0 x inf), so a step whose gradients are not finite must still be skipped as a whole, as
ddx.training.optimizer does.

A loss's kernel leaves each derivative behind as it has it in hand, without the factor of its sample (a mean, a weight,
a norm that is known only after the last block); the backward pass multiplies by that factor and the gradient of the
loss, in float32, all gradients in one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddx.kernels import dispatch
from ddx.kernels.launch import Kernel, Launch, blocks
from ddx.kernels.per_sample import per_sample

SCALE = Launch("guarded_loss_scale", default={"BLOCK": 1024, "num_warps": 4})
INFINITY = tl.constexpr(float("inf"))


class GuardedLoss(NamedTuple):
    """The loss of each sample, float32 `[B]`, and bool `[B]`: which samples it was not finite for and counts as 0."""

    loss: Tensor
    dropped: Tensor


def guarded_reference(loss: Callable[..., Tensor], *samples: Tensor | None) -> GuardedLoss:
    """The loss in plain torch with its guard. `samples` are the arguments of `loss`, `[B, ...]` each.

    A sample that is dropped is replaced by zeros before the gradients are taken; the others keep their bits.
    """
    with torch.no_grad():
        finite = torch.isfinite(loss(*samples))
    kept = [None if x is None else torch.where(per_sample(finite, x), x, 0.0) for x in samples]
    return GuardedLoss(torch.where(finite, loss(*kept), 0.0), ~finite)


def refuse_forward_ad(name: str) -> None:
    """Raise NotImplementedError under forward-mode AD: parts of a loss are constants that a tangent would cross."""
    if dispatch.in_forward_ad():
        raise NotImplementedError(f"{name} has no forward-mode derivative; differentiate {name}_reference")


def wants_gradient(x: Tensor) -> bool:
    """Whether a backward pass may ask for the gradient of x."""
    return torch.is_grad_enabled() and x.requires_grad


def new_outputs(batch: int, inputs: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Memory for a loss, which samples are dropped and the factor of each, `[B]`, and the derivatives that are wanted.

    A derivative has the shape and the dtype of its input; one that is not wanted is empty.
    """
    device = inputs[0].device
    return (
        torch.empty(batch, dtype=torch.float32, device=device),
        torch.empty(batch, dtype=torch.bool, device=device),
        torch.empty(batch, dtype=torch.float32, device=device),
        *(
            torch.empty(x.shape if want else (0,), dtype=x.dtype, device=device)
            for x, want in zip(inputs, wanted, strict=True)
        ),
    )


@triton.jit
def guard(loss_ptr, dropped_ptr, factor_ptr, sample, loss, factor):  # type: ignore[no-untyped-def]
    """Write a sample's loss and the factor of its derivatives, both 0 if it is dropped. Return whether it is."""
    dropped = (loss != loss) | (tl.abs(loss) == INFINITY)
    tl.store(loss_ptr + sample, tl.where(dropped, 0.0, loss))
    tl.store(factor_ptr + sample, tl.where(dropped, 0.0, factor))
    tl.store(dropped_ptr + sample, dropped)
    return dropped


@triton.jit
def _scaled(derivative_ptr, gradient_ptr, offset, inside, known, scale):  # type: ignore[no-untyped-def]
    derivative = tl.load(derivative_ptr + offset, mask=known, other=0.0).to(tl.float32)
    tl.store(gradient_ptr + offset, (derivative * scale).to(gradient_ptr.dtype.element_ty), mask=inside)


@Kernel
def _scale_kernel(  # type: ignore[no-untyped-def]
    g_ptr,
    factor_ptr,
    derivative_0_ptr,
    derivative_1_ptr,
    derivative_2_ptr,
    by_sample_ptr,
    gradient_0_ptr,
    gradient_1_ptr,
    gradient_2_ptr,
    gradient_by_sample_ptr,
    num_elements,
    g_stride,
    COUNT: tl.constexpr,
    BY_SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one sample, of up to three derivatives. What a factor of 0 belongs to is not even read."""
    sample = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offset, inside = sample * num_elements + index, index < num_elements
    factor = tl.load(factor_ptr + sample)
    known = index < tl.where(factor != 0.0, num_elements, 0)
    g = tl.load(g_ptr + sample * g_stride).to(tl.float32)
    scale = tl.where(factor != 0.0, g * factor, 0.0)
    if COUNT > 0:
        _scaled(derivative_0_ptr, gradient_0_ptr, offset, inside, known, scale)
    if COUNT > 1:
        _scaled(derivative_1_ptr, gradient_1_ptr, offset, inside, known, scale)
    if COUNT > 2:
        _scaled(derivative_2_ptr, gradient_2_ptr, offset, inside, known, scale)
    if BY_SAMPLE:  # noqa: SIM102  the outer one is decided when this is compiled
        if tl.program_id(0) == 0:
            derivative = tl.load(by_sample_ptr + sample).to(tl.float32)
            gradient = tl.where(derivative != 0.0, g * derivative, 0.0)
            tl.store(gradient_by_sample_ptr + sample, gradient.to(gradient_by_sample_ptr.dtype.element_ty))


@torch.library.custom_op("ddx::guarded_loss_scale", mutates_args=())
def _scale(
    g: Tensor, loss: Tensor, factor: Tensor, derivatives: list[Tensor], by_sample: Tensor | None
) -> list[Tensor]:
    """Each of up to three derivatives `[B, ...]` times g and factor `[B]`, and `[B]` by_sample times g, in its dtype.

    The loss is not read: it ties what is returned to the graph, so that a second derivative is refused and not 0.
    """
    num_elements = derivatives[0].numel() // len(g) if derivatives else 1
    every = derivatives if by_sample is None else [*derivatives, by_sample]
    gradients = [torch.empty(d.shape, dtype=d.dtype, device=d.device) for d in every]
    options = SCALE.options(g.device)
    unread = 3 - len(derivatives)
    _scale_kernel.launch(
        (blocks(num_elements, options["BLOCK"]), len(g)),
        g.device,
        options.joined(COUNT=len(derivatives), BY_SAMPLE=by_sample is not None),
        g,
        factor,
        *derivatives,
        *unread * [factor],
        every[-1],
        *gradients[: len(derivatives)],
        *unread * [factor],
        gradients[-1],
        num_elements,
        g.stride(0),
    )
    return gradients


@_scale.register_fake
def _(g: Tensor, loss: Tensor, factor: Tensor, derivatives: list[Tensor], by_sample: Tensor | None) -> list[Tensor]:
    every = derivatives if by_sample is None else [*derivatives, by_sample]
    return [derivative.new_empty(derivative.shape) for derivative in every]


def keep_derivatives(ctx: Any, loss: Tensor, *tensors: Tensor) -> None:
    """Save outputs of the operation for its backward pass. Nobody but the loss is differentiated."""
    ctx.set_materialize_grads(False)  # or autograd would fill a zero gradient for each of the others
    ctx.mark_non_differentiable(*tensors)
    ctx.save_for_backward(loss, *tensors)


def scaled_gradients(
    g: Tensor, loss: Tensor, factor: Tensor, *derivatives: Tensor, by_sample: Tensor | None = None
) -> list[Tensor | None]:
    """The gradient by each derivative, for the gradient g `[B]` of the loss; None for an empty one.

    by_sample: a derivative `[B]` without a factor, 0 for what is dropped; its gradient is the last one.
    """
    asked = [*derivatives] if by_sample is None else [*derivatives, by_sample]
    made = [derivative for derivative in derivatives if derivative.numel()]
    if by_sample is not None and not by_sample.numel():
        by_sample = None
    scaled = iter(_scale(g, loss, factor, made, by_sample))
    return [next(scaled) if derivative.numel() else None for derivative in asked]
