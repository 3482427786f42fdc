"""Exponential moving averages of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ddx.training.config import parse_average


class EMA:
    """A float32 average of the trainable parameters of a network.

    Exactly one of `decay` (per update), `half_life_images` (the number of images after which a weight counts half;
    Karras et al. 2022) and `power` (step n of the past counts as n**power; Karras et al. 2024) is given. With `ramp_up`
    the average forgets its start: the half-life is at most that share of the images seen so far (0.05 in EDM).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        decay: float | None = None,
        half_life_images: float | None = None,
        power: float | None = None,
        ramp_up: float | None = None,
    ) -> None:
        if [decay, half_life_images, power].count(None) != 2:
            raise ValueError("give exactly one of decay, half_life_images and power")
        self.decay = decay
        self.power = power
        self.half_life_images = half_life_images
        self.ramp_up = ramp_up
        self.num_images = 0
        self._live = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._shadow = {name: value.detach().float().clone() for name, value in self._live.items()}

    def decay_of(self, batch_size: int) -> float:
        """Return the factor that the average keeps at an update after `batch_size` more images."""
        if self.decay is not None:
            if self.ramp_up is None:
                return self.decay
            updates = self.num_images / batch_size
            return min(self.decay, (1.0 + updates) / (10.0 + updates))
        if self.power is not None:
            return float((1.0 - batch_size / max(self.num_images, batch_size)) ** (self.power + 1.0))
        half_life = float(self.half_life_images or 0.0)
        if self.ramp_up is not None:
            half_life = min(half_life, self.num_images * self.ramp_up)
        return float(0.5 ** (batch_size / max(half_life, 1e-8)))

    def advance(self, batch_size: int) -> float | None:
        """Count a step on `batch_size` images; return how far the average is to move, None for a snapshot."""
        self.num_images += batch_size
        return None if self.decay == 1.0 else 1.0 - self.decay_of(batch_size)

    @torch.no_grad()
    def update(self, batch_size: int = 1) -> None:
        """Move the average towards the current weights, after a step on `batch_size` images."""
        weight = self.advance(batch_size)
        if weight is not None:
            targets = [value.detach().float() for value in self._live.values()]
            torch._foreach_lerp_(list(self._shadow.values()), targets, weight)

    def of(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the averages of these parameters, the live ones. KeyError for one that is not averaged."""
        found = {id(value): self._shadow[name] for name, value in self._live.items()}
        return [found[id(parameter)] for parameter in parameters]

    @classmethod
    def named(cls, module: nn.Module, name: str) -> EMA:
        """Return the average that a setting names: `decay:0.999`, `half-life:20000` (images) or `power:6.94`.

        UsageError for another text.
        """
        kind, value = parse_average(name)
        return cls(module, **{{"half-life": "half_life_images"}.get(kind, kind): value})

    @torch.no_grad()
    def renew(self) -> None:
        """Become equal to the current weights."""
        for name, value in self._live.items():
            self._shadow[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the parameters of `module`, in their dtype. Raises KeyError if a name is missing."""
        parameters = dict(module.named_parameters())
        for name, value in self._shadow.items():
            parameters[name].copy_(value)

    def parameters(self) -> dict[str, Tensor]:
        """Return the averaged tensors by parameter name, float32; they are the live ones, not copies."""
        return self._shadow

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on exactly."""
        return {"num_images": self.num_images, "shadow": dict(self._shadow)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; raises KeyError if it is of another network."""
        self.num_images = int(state["num_images"])
        for name, value in self._shadow.items():
            value.copy_(state["shadow"][name])


class Swapped(AbstractContextManager[nn.Module]):
    """Inside, a network has the weights of its average, and evaluates."""

    def __init__(self, network: nn.Module, average: EMA | None) -> None:
        self.network, self.average = network, average
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> nn.Module:
        self.training = self.network.training
        if self.average is not None:
            self.kept = {name: value.detach().clone() for name, value in self.network.named_parameters()}
            self.average.copy_to(self.network)
        return self.network.eval()

    def __exit__(self, *exception: object) -> None:
        with torch.no_grad():
            for name, value in self.network.named_parameters():
                if name in self.kept:
                    value.copy_(self.kept[name])
        self.kept = {}
        self.network.train(self.training)


def average_in_place(module: nn.Module, source: nn.Module, decay: float) -> EMA:
    """Return the average of `source`, whose tensors are the parameters of `module`: no second copy is kept."""
    average = EMA(source, decay=decay)
    averaged = average.parameters()
    for name, value in module.named_parameters():
        value.requires_grad_(False)
        if name in averaged:  # all of them, but for a frozen backbone
            value.data = averaged[name]
    module.eval()
    return average
