"""AdamW whose moments live in the host's memory: the same numbers, eight bytes a weight fewer on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw

from ddx.checkpoints.shares import Spread, copy_into, restored
from ddx.training.host_memory import empty_at_home, parts, visit

MOMENTS = ("exp_avg", "exp_avg_sq")


class HostAdamW(AdamW):
    """torch's fused AdamW, a part of the parameters after the other, whose moments visit the device for it."""

    def __init__(self, parameters: list[nn.Parameter], **settings: Any) -> None:
        super().__init__(parameters, fused=True, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; clipping and skipping as `guarded_step` asks for them."""
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in given:
                if not self.state[parameter]:
                    self._begin(parameter)
            cuts = list(parts(given))
            homes = [[self.state[p][key] for p in given[cut] for key in MOMENTS] for cut in cuts]
            device = given[0].device if given else torch.device("cpu")
            for cut, moments in zip(cuts, visit(homes, device), strict=True):
                self._update(group, given[cut], moments)

    def _begin(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)  # where the fused kernel counts
        for key in MOMENTS:
            state[key] = empty_at_home(parameter).zero_()

    def _update(self, group: dict[str, Any], parameters: list[Tensor], moments: list[Tensor]) -> None:
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            moments[0::2],
            moments[1::2],
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def restored(self, key: str, value: Tensor | Spread, parameter: Tensor) -> Tensor:
        """Return a value of a parameter's saved state where this optimiser keeps it."""
        if key not in MOMENTS:
            return restored(value, parameter, parameter.device)
        home = empty_at_home(parameter)
        copy_into(home, value)
        return home
