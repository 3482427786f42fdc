"""A run that no longer learns: steps without a finite gradient, counted on the device, and the error that ends it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddx.checkpoints.folder import latest_checkpoint
from ddx.errors import DdxError


class LostSteps:
    """How many steps in a row a network has not learned from: none of its rows had a finite loss, or its gradient none.

    `in_a_row`, a 0-d tensor on the network's device, is written there; nobody waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.in_a_row = torch.zeros((), device=device)
        self._no_row_left = torch.ones((), dtype=torch.bool, device=device)

    def add(self, dropped: Tensor | None) -> None:
        """Look at the rows of a micro-batch: bool `[B]`, which were dropped; None for a loss that drops none."""
        if dropped is None:
            self._no_row_left.fill_(False)
        else:
            self._no_row_left &= dropped.all()

    def end_step(self, not_finite: Tensor) -> None:
        """Count the step. `not_finite`: 0-d, above zero when the gradient is not."""
        lost = self._no_row_left | (not_finite > 0.0)
        self.in_a_row.copy_(torch.where(lost, self.in_a_row + 1.0, 0.0))
        self._no_row_left.fill_(True)


def diverged(step: int, lost: int, checkpoints: Path, cure: str) -> DdxError:
    """Return the error of a run that has learned nothing in the `lost` steps before `step`; `cure` begins its hint."""
    saved = latest_checkpoint(checkpoints)
    where = "from its start" if saved is None else f"from {saved.name}, from before that"
    return DdxError(
        f"the run has diverged: its last {lost} updates, up to step {step}, had no finite gradient",
        hint=f"{cure} goes on {where}",
    )
