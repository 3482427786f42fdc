"""Learning-rate schedules as pure functions, and optimiser steps that clip, and that are skipped where they must be."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddx.errors import DdxError
from ddx.kernels import dispatch
from ddx.training.came import CAME
from ddx.training.config import DistillConfig
from ddx.training.ema import EMA
from ddx.training.host_adamw import HostAdamW
from ddx.training.one_pass import OnePass
from ddx.training.spread_tensors import is_spread, locals_of, summed


def make_optimizer(parameters: list[nn.Parameter], learning_rate: float, config: DistillConfig) -> Optimizer:
    """Return the optimiser that `config` names. DdxError when the library that it comes from is not installed."""
    betas, decay = (config.adam_beta1, config.adam_beta2), config.weight_decay
    if config.optimizer in ("adamw", "radam") and "moments" not in config.offload and _runs_kernels(parameters):
        return OnePass(
            parameters,
            lr=learning_rate,
            betas=betas,
            eps=config.adam_epsilon,
            weight_decay=decay,
            rectified=config.optimizer == "radam",
        )
    match config.optimizer:
        case "adamw" if "moments" in config.offload:
            return HostAdamW(parameters, lr=learning_rate, betas=betas, eps=config.adam_epsilon, weight_decay=decay)
        case "adamw":  # one multi-tensor kernel, which also skips a step on the device
            return torch.optim.AdamW(
                parameters, lr=learning_rate, betas=betas, eps=config.adam_epsilon, weight_decay=decay, fused=True
            )
        case "radam":
            return torch.optim.RAdam(
                parameters,
                lr=learning_rate,
                betas=betas,
                eps=config.adam_epsilon,
                weight_decay=decay,
                decoupled_weight_decay=True,
            )
        case "adamw8bit":
            library = _library("bitsandbytes", "bitsandbytes")
            return cast(
                Optimizer,
                library.optim.AdamW8bit(
                    parameters, lr=learning_rate, betas=betas, eps=config.adam_epsilon, weight_decay=decay
                ),
            )
        case "came":
            return CAME(parameters, lr=learning_rate, betas=(*betas, 0.9999), weight_decay=decay)
    raise ValueError(f"unknown optimizer {config.optimizer!r}")


def _runs_kernels(parameters: list[nn.Parameter]) -> bool:
    return dispatch.backend(parameters[0].device.type) == "triton" and OnePass.takes(parameters)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DdxError(f"{package} is not installed", hint=f"pip install {package}, or --optimizer adamw") from error


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


class Clip(NamedTuple):
    """What is known of the gradients before a step: 0-d float32 tensors on their device, which nobody has waited for.

    norm: their joint norm before clipping; found_inf: 1 where it is not finite, else 0; divisor: at least 1, what the
    gradients must be divided by so that their norm is the allowed one.
    """

    norm: Tensor
    found_inf: Tensor
    divisor: Tensor


def measure_clip(gradients: Iterable[Tensor | None], max_norm: float) -> Clip:
    """Return what `guarded_step` must know to clip these gradients to `max_norm` (0: not); they are only read."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return Clip(torch.zeros(()), torch.zeros(()), torch.ones(()))
    norm = joint_norm(present)
    finite = torch.isfinite(norm)
    over = (norm + 1e-6) / max_norm if max_norm > 0.0 else torch.ones_like(norm)
    divisor = torch.where(finite, over.clamp(min=1.0), torch.ones_like(norm))
    return Clip(norm, (~finite).float(), divisor)


def joint_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all these together, 0-d float32; the same on every rank of those that are spread."""
    if not is_spread(gradients):
        norm: Tensor = torch.linalg.vector_norm(torch.stack([n.float() for n in torch._foreach_norm(list(gradients))]))
        return norm
    shares = [share for share in locals_of(gradients) if share.numel()]  # a small tensor has none on some ranks
    norms = [n.float().square() for n in torch._foreach_norm(shares)] if shares else []
    own = torch.stack(norms).sum() if norms else torch.zeros((), device=gradients[0].device)
    return summed(own, gradients).sqrt()


def guarded_step(
    optimizer: Optimizer, clip: Clip, skipped: Tensor, averages: Sequence[EMA] = (), num_images: int = 0
) -> None:
    """Take an optimiser step on the clipped gradients, or none if they are not finite; then the averages move.

    `skipped`, 0-d on the same device, counts those that were not taken. `averages` are of the optimiser's weights, and
    count `num_images` more. Rows whose loss is not finite do not come here, their loss drops them
    (`ddx.kernels.guarded_loss`); what does is NaN in a network's activations, whose backward pass makes NaN of a zero
    gradient too.

    On a GPU all of it is one pass. A fused optimiser of torch divides and skips on the device as well, by the two
    values that torch's own gradient scaler uses; any other one costs a pass, and is skipped by the host.
    """
    skipped += clip.found_inf
    if isinstance(optimizer, OnePass):
        moves = [(average, average.advance(num_images)) for average in averages if average.is_beside]
        optimizer.take(clip.divisor, clip.found_inf, [(a, weight) for a, weight in moves if weight is not None])
        averages = [average for average in averages if not average.is_beside]
    elif all(group.get("fused") for group in optimizer.param_groups):
        scaled: dict[str, Tensor] = {"grad_scale": clip.divisor, "found_inf": clip.found_inf}
        for name, value in scaled.items():
            setattr(optimizer, name, value)
        try:
            optimizer.step()
        finally:
            for name in scaled:
                delattr(optimizer, name)
    elif not bool(clip.found_inf):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_div_(locals_of(gradients), clip.divisor)
        optimizer.step()
    for average in averages:
        average.update(num_images)
