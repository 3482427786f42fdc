"""How two losses of one network meet: added as they are, held at a ratio of gradient norms, or the second yielding.

    norm      total = L1 + w L2,  w = ratio * EMA |grad L1| / EMA |grad L2|, norms taken on the last layer with a matrix
    project   g = g1 + g2 - min(0, <g1, g2>) / |g1|^2 g1: what of the second opposes the first is taken out of it

The first is the balance of Esser et al. 2021 (VQGAN's adaptive weight), with averaged norms; the second the primary and
secondary form of Yu et al. 2020 (gradient surgery), over all weights of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks

DECAY = 0.9


class LossBalance:
    """The two losses of one network over the micro-batches of a step."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: DistillConfig, ranks: Ranks) -> None:
        self.parameters = list(parameters)
        self.kind, self.ratio, self.ranks = config.loss_balance, config.balance_ratio, ranks
        matrices = [p for p in self.parameters if p.ndim >= 2]
        self.shared = (matrices or self.parameters)[-1:]
        self.norms = torch.zeros(2, device=self.shared[0].device if self.shared else None)
        self._second: list[Tensor] | None = None

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Return what the backward pass starts from, for the two losses of a micro-batch (0-d)."""
        match self.kind:
            case "norm":
                return first + self._weight(first, second) * second
            case "project":
                found = torch.autograd.grad(second, self.parameters, retain_graph=True, allow_unused=True)
                dense = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
                if self._second is None:
                    self._second = dense
                else:
                    torch._foreach_add_(self._second, dense)
                return first
        return first + second

    @torch.no_grad()
    def finish(self) -> None:
        """Add the second loss's gradient to those of the first, when all micro-batches are through."""
        if self._second is None:
            return
        second = [self.ranks.mean(gradient) for gradient in self._second]
        self._second = None
        first = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        along = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
        size = torch.stack([a.square().sum() for a in first]).sum()
        opposed = along.clamp(max=0.0) / size.clamp(min=1e-20)
        for parameter, a, b in zip(self.parameters, first, second, strict=True):
            parameter.grad = a + b - opposed * a

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep, the live tensors."""
        return {"norms": self.norms} if self.kind == "norm" else {}

    def _weight(self, first: Tensor, second: Tensor) -> Tensor:
        sizes = []
        for loss in (first, second):
            found = torch.autograd.grad(loss, self.shared, retain_graph=True, allow_unused=True)
            sizes.append(torch.stack([g.norm() if g is not None else loss.new_zeros(()) for g in found]).sum())
        now = self.ranks.mean(torch.stack(sizes).detach().float())
        known = torch.where(self.norms > 0.0, torch.lerp(now, self.norms, DECAY), now)
        self.norms.copy_(torch.where(torch.isfinite(known), known, self.norms))
        weight = self.ratio * self.norms[0] / self.norms[1].clamp(min=1e-12)
        return torch.where(self.norms[1] > 0.0, weight, torch.ones_like(weight))
