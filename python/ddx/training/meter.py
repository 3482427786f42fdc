"""Sums of losses and norms on the device, read once a line of metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddx.methods.base import Losses


class Meter:
    """Means over what was added since the last reading; values that are not finite are left out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: Losses) -> None:
        """Add the rows of a micro-batch. What was dropped counts for its share, "dropped", and for no loss."""
        for name, rows in losses.by_network.items():
            prefix = "" if name == "student" else f"{name}_"
            if name in losses.dropped:
                self._add(f"{prefix}dropped", losses.dropped[name])
                rows = rows.detach().masked_fill(losses.dropped[name], float("nan"))
            self._add(f"{prefix}loss", rows)
        for name, rows in losses.tracked.items():
            self._add(name, rows)

    def add_norm(self, network: str, norm: Tensor) -> None:
        """Add the gradient norm of a network's update."""
        self._add("grad_norm" if network == "student" else f"{network}_grad_norm", norm.reshape(1))

    @torch.no_grad()
    def _add(self, name: str, values: Tensor) -> None:
        values = values.detach().double()
        finite = torch.isfinite(values)
        pair = torch.stack([torch.where(finite, values, 0.0).sum(), finite.sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self, mean: Callable[[Tensor], Tensor]) -> dict[str, float | None]:
        """Return the means over all ranks, None for a name with no finite value, and start anew.

        `mean` averages a tensor over the ranks.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        rows = mean(torch.stack([self._sums[name] for name in names]).to(self.device)).tolist()
        self._sums = {}
        return {name: total / count if count > 0 else None for name, (total, count) in zip(names, rows, strict=True)}
