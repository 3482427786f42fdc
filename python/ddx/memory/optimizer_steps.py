"""An optimiser's step on tensors without data: its state and what it holds for a moment.

On a GPU AdamW and RAdam are one pass of ours, which holds nothing beside its state, and torch's fused AdamW runs as it
is. The others read a count of their own on the host, or run on a GPU alone: their state is made here, and the lists of
temporaries that their multi-tensor passes hold at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddx.training.one_pass import OnePass

_BLOCK = 256  # values that share a scale in bitsandbytes' 8-bit states
_SMALLEST = 4096  # parameters with fewer values keep float32 states there


def step_without_values(optimizer: Optimizer, kind: str) -> None:
    """Take a step of the optimiser that `kind` names (`DistillConfig.optimizer`)."""
    if isinstance(optimizer, OnePass) and kind in ("adamw", "radam"):
        optimizer.make_state()
        return
    if kind == "adamw":
        optimizer.step()
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for parameter in parameters:
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = _state(parameter, kind)
    if kind == "radam":  # of its passes two lists are alive at once: the roots of the second moments, and the steps
        held = [[torch.empty_like(p) for p in parameters] for _ in range(2)]
    elif kind == "came":  # one parameter after the other, with its update and the squares of that
        held = [[torch.empty_like(max(parameters, key=nn.Parameter.numel)) for _ in range(3)]]
    else:
        held = []
    del held


def _state(parameter: nn.Parameter, kind: str) -> dict[str, Tensor]:
    value = parameter.detach()
    if kind == "came":  # Adafactor's factored second moments, twice, and a whole first one
        if value.ndim < 2:
            return {"exp_avg": torch.empty_like(value), "exp_avg_sq": torch.empty_like(value)}
        rows, columns = value.shape[:-1], value.shape[:-2] + value.shape[-1:]
        factors: dict[str, Tensor] = {}
        for name in ("exp_avg_sq", "exp_avg_res"):
            factors |= {f"{name}_row": value.new_empty(rows), f"{name}_col": value.new_empty(columns)}
        return {"exp_avg": torch.empty_like(value), **factors}
    if kind == "adamw8bit" and value.numel() >= _SMALLEST:
        scales = -(-value.numel() // _BLOCK)
        return {
            "state1": torch.empty_like(value, dtype=torch.uint8),
            "state2": torch.empty_like(value, dtype=torch.uint8),
            "absmax1": value.new_empty(scales),
            "absmax2": value.new_empty(scales),
        }
    return {"exp_avg": torch.empty_like(value), "exp_avg_sq": torch.empty_like(value)}
