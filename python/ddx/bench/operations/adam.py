"""The update of a matrix with its average, beside torch's optimiser and `lerp`.

Both update copies, whose passes are counted as moved: how long the update of a whole network takes is what
`benchmarks/optimizer.py` measures.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from ddx.bench.case import Case, Size, randn
from ddx.kernels.adam import Rule, Updated, update, update_reference
from ddx.kernels.dispatch import use_triton

ADAMW = Rule(rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-8)
RADAM = dataclasses.replace(ADAMW, rectified=True)
FORGETS = 1e-3  # the share of an average that goes in a step
TAKEN = 9  # steps before this one
NAMES = ("x", "gradient", "m", "v", "average")


def cases(size: Size) -> list[Case]:
    """Return a step of each, for a matrix as large as the model's queries, keys and values; the batch plays no part."""
    shape = (3 * size.width, size.width)
    return [
        Case(
            operation=name,
            mode="forward",
            make=functools.partial(_make, shape),
            ours=functools.partial(ours, rule=rule),
            stock=functools.partial(stock, rectified=rule.rectified),
            moved_elements=2 * (9 + 2 * 4) * shape[0] * shape[1],  # of two bytes, where these have four
        )
        for name, rule in (("adamw", ADAMW), ("radam", RADAM))
    ]


def _make(shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
    made = {name: randn(generator, *shape) for name in NAMES}
    return {**made, "v": made["v"].square()}


def ours(*, rule: Rule, **state: Tensor) -> tuple[Tensor, ...]:
    """Return weight, moments and average after one step of ours."""
    x, gradient, m, v, average = (_copy(state[name]) for name in NAMES)
    if not use_triton(x):
        found = update_reference(x, gradient, m, v, [(FORGETS, average)], count=TAKEN + 1, rule=rule)
        return tuple(found.values())
    count, one = torch.full((), float(TAKEN), device=x.device), torch.ones((), device=x.device)
    each = Updated(weight=x, gradient=gradient, m=m, v=v, count=count, averages=[average])
    update([each], rule, divisor=one, found_inf=one - 1.0, average_weights=[FORGETS])
    return x, m, v, average


def stock(*, rectified: bool, **state: Tensor) -> tuple[Tensor, ...]:
    """Return the same after one step of torch's optimiser."""
    x, gradient, m, v, average = (_copy(state[name]) for name in NAMES)
    x.grad = gradient
    kind: Any = torch.optim.RAdam if rectified else torch.optim.AdamW
    options = {"capturable": x.is_cuda} if rectified else {"fused": True}
    optimizer = kind([x], lr=ADAMW.rate, weight_decay=0.0, **options)
    count = torch.full((), float(TAKEN), device=x.device if x.is_cuda else "cpu")
    optimizer.state[x] = {"step": count, "exp_avg": m, "exp_avg_sq": v}
    optimizer.step()
    return x, m, v, average.lerp_(x, FORGETS)


def _copy(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
