"""AdamW and RAdam on a GPU: one pass over the weights of a network, in which its averages move too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddx.kernels.adam import Rule, Updated, update
from ddx.training.ema import EMA
from ddx.training.spread_tensors import local, locals_of


class OnePass(Optimizer):
    """torch's AdamW, or its RAdam, of float32 weights; state and its names are torch's, so checkpoints change places.

    `capturable` is torch's word for a count of steps that is kept on the device.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        rectified: bool,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rectified": rectified}
        super().__init__(parameters, {**settings, "capturable": True})

    @staticmethod
    def takes(parameters: Sequence[Tensor]) -> bool:
        """Whether it can update these."""
        return all(p.dtype == torch.float32 and p.is_contiguous() for p in parameters)

    def make_state(self) -> None:
        """Make the moments and the count of every parameter that has a gradient and none yet."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.zeros((), device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        device = self.param_groups[0]["params"][0].device
        self.take(torch.ones((), device=device), torch.zeros((), device=device))

    @torch.no_grad()
    def take(self, divisor: Tensor, found_inf: Tensor, averages: Sequence[tuple[EMA, float]] = ()) -> None:
        """Update on the gradients over `divisor`, unless `found_inf` is above zero: both 0-d float32 on the device.

        averages: of these weights, each with how far it moves towards them, whether they are updated or not.
        """
        self.make_state()
        for group in self.param_groups:
            moving = [average.of(group["params"]) for average, _ in averages]
            tensors = [
                self._updated(parameter, [values[k] for values in moving])
                for k, parameter in enumerate(group["params"])
            ]
            rule = Rule(
                rate=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                epsilon=group["eps"],
                decay=group["weight_decay"],
                rectified=group["rectified"],
            )
            update(
                tensors, rule, divisor=divisor, found_inf=found_inf, average_weights=[weight for _, weight in averages]
            )

    def _updated(self, parameter: nn.Parameter, averages: Sequence[Tensor]) -> Updated:
        state = self.state.get(parameter, {})
        return Updated(
            weight=local(parameter),
            gradient=None if parameter.grad is None else local(parameter.grad).contiguous(),
            m=local(state["exp_avg"]) if state else None,
            v=local(state["exp_avg_sq"]) if state else None,
            count=state.get("step"),
            averages=locals_of(averages),
        )
