"""Learning-rate schedules as pure functions, and a gradient clip that tells whether the step may be taken."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


def warmup_constant(step: int, *, warmup_steps: int) -> float:
    """Return the factor on the learning rate at `step` (from 0): a linear rise, then 1."""
    return min(1.0, (step + 1) / max(warmup_steps, 1))


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int, final: float = 0.0) -> float:
    """Return the factor on the learning rate at `step` (from 0): a linear rise, then half a cosine to `final`."""
    if step < warmup_steps:
        return warmup_constant(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_linear(step: int, *, warmup_steps: int, total_steps: int, final: float = 0.0) -> float:
    """Return the factor on the learning rate at `step` (from 0): a linear rise, then a straight fall to `final`."""
    if step < warmup_steps:
        return warmup_constant(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1))
    return 1.0 + (final - 1.0) * progress


def set_learning_rate(optimizer: Optimizer, base: float, factor: float) -> None:
    """Set the learning rate of every group to `base * factor`."""
    for group in optimizer.param_groups:
        group["lr"] = base * factor


def clip_and_check(gradients: Iterable[Tensor | None], max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale gradients in place so that their joint norm is at most `max_norm`.

    Returns the norm before clipping and a float32 flag that is 1 where it is not finite, both 0-d tensors on the
    gradients' device: nothing here waits for that device. Gradients without a finite norm are left as they are,
    and `guarded_step` skips them.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return torch.zeros(()), torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack([n.float() for n in torch._foreach_norm(present)]))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    factor = torch.where(torch.isfinite(norm), factor, torch.ones_like(factor))
    torch._foreach_mul_(present, factor)
    return norm, (~torch.isfinite(norm)).float()


def guarded_step(optimizer: Optimizer, found_inf: Tensor, skipped: Tensor) -> None:
    """Take an optimiser step unless `found_inf` is set, and add it to the counter `skipped` (0-d, same device).

    A fused optimiser skips on the device, by the flag that torch's own gradient scaler uses, so the host does not
    wait; any other one is skipped by the host.
    """
    skipped += found_inf
    if all(group.get("fused") for group in optimizer.param_groups):
        flagged: dict[str, Tensor | None] = {"grad_scale": None, "found_inf": found_inf}
        for name, value in flagged.items():
            setattr(optimizer, name, value)
        try:
            optimizer.step()
        finally:
            for name in flagged:
                delattr(optimizer, name)
    elif not bool(found_inf):
        optimizer.step()
