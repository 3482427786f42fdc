"""How two losses of one network meet: added as they are, held at a ratio of gradient norms, or the second yielding.

    norm      g = g1 + w g2,  w = ratio * EMA |g1| / EMA |g2|, norms taken on the teacher's last matrix
    project   g = g1 + g2 - min(0, <g1, g2>) / |g1|^2 g1: what of the second opposes the first is taken out of it

The first is the balance of Esser et al. 2021 (VQGAN's adaptive weight), with averaged norms; the second the primary and
secondary form of Yu et al. 2020 (gradient surgery), over all weights of the network. g1 and g2 are the gradients of the
global batch, so what a step does depends neither on its micro-batches nor on the number of ranks. Both must be there
whole before they meet, which takes the memory of a second gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddx.networks.guidance import EMBEDDERS
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.spread_tensors import is_spread, local, locals_of, summed

DECAY = 0.9


class LossBalance:
    """The two losses of one network over the micro-batches of a step."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], config: DistillConfig, ranks: Ranks) -> None:
        self.parameters = [parameter for _, parameter in named]
        self.kind, self.ratio, self.ranks = config.loss_balance, config.balance_ratio, ranks
        # not of an added embedder: a loss may feed it a number that moves none of its weights
        matrices = [k for k, (name, p) in enumerate(named) if p.ndim >= 2 and not any(e in name for e in EMBEDDERS)]
        self.measured = (matrices or list(range(len(self.parameters))))[-1]
        self.norms = torch.zeros(2, device=ranks.device)
        self._second: list[Tensor | None] | None = None

    @property
    def separates(self) -> bool:
        """Whether the second loss has a backward pass of its own, in :meth:`second`, after the first one's."""
        return self.kind != "none"

    @contextmanager
    def second(self) -> Iterator[None]:
        """Let the backward pass inside add to the gradient of the second loss, and leave the first one's as it is.

        That of the first loss must be through: then no data-parallel wrapper waits for a gradient any more.
        """
        first = [parameter.grad for parameter in self.parameters]
        self._set_gradients(self._second or [None] * len(first))
        yield
        self._second = [parameter.grad for parameter in self.parameters]
        self._set_gradients(first)

    @torch.no_grad()
    def finish(self) -> None:
        """Join the second loss's gradient to that of the first, when all micro-batches are through."""
        if self._second is None:
            return
        first = _dense([p.grad for p in self.parameters], self.parameters)
        second, self._second = _dense(self._second, self.parameters), None
        if not is_spread(second):  # shares are of the mean already
            for index, gradient in enumerate(second):  # of every weight, whichever a rank's own rows reach
                second[index] = self.ranks.mean(gradient)
        if self.kind == "norm":
            torch._foreach_mul_(locals_of(second), self._weight(first, second))
        else:
            torch._foreach_mul_(locals_of(first), 1.0 - _opposed(first, second))
        torch._foreach_add_(locals_of(first), locals_of(second))
        self._set_gradients(first)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep, the live tensors."""
        return {"norms": self.norms} if self.kind == "norm" else {}

    def _set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _weight(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return w, after the averages have taken one step."""
        now = torch.stack([local(gradients[self.measured]).norm() for gradients in (first, second)])
        if is_spread(first):
            now = summed(now.square(), first).sqrt()
        known = torch.where(self.norms > 0.0, torch.lerp(now, self.norms, DECAY), now)
        self.norms.copy_(torch.where(torch.isfinite(known), known, self.norms))
        weight = self.ratio * self.norms[0] / self.norms[1].clamp(min=1e-12)
        return torch.where(self.norms[1] > 0.0, weight, torch.ones_like(weight))


def _dense(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def _opposed(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Return ``min(0, <g1, g2>) / |g1|^2``."""
    pairs = list(zip(locals_of(first), locals_of(second), strict=True))
    along = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    size = torch.stack([a.square().sum() for a, _ in pairs]).sum()
    both = summed(torch.stack([along, size]), first)
    return both[0].clamp(max=0.0) / both[1].clamp(min=1e-20)
