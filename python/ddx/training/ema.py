"""Exponential moving averages of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ddx.checkpoints.shares import copy_all_into
from ddx.methods.parts.random_numbers import mix
from ddx.training.config import parse_average
from ddx.training.host_memory import empty_at_home, parts, visit
from ddx.training.spread_tensors import locals_of, reshard


class EMA:
    """An average of the trainable parameters of a network, float32 or bfloat16, on their device or on the host.

    In bfloat16 it is rounded up or down at random, with the chances that keep its expectation (`rounded_at_random`):
    rounded to the nearest it would stand still, since a step of it is smaller than half of its last digit.

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
        dtype: torch.dtype = torch.float32,
        on_host: bool = False,
        seed: int = 0,
        places: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`places`: the tensors, by name, that become the average, as those of another network."""
        if [decay, half_life_images, power].count(None) != 2:
            raise ValueError("give exactly one of decay, half_life_images and power")
        self.decay = decay
        self.power = power
        self.half_life_images = half_life_images
        self.ramp_up = ramp_up
        self.num_images = 0
        self.dtype, self.on_host, self.seed = dtype, on_host, seed
        self._live = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if places is None:
            self._shadow = {name: self._first(value.detach(), dtype) for name, value in self._live.items()}
            return
        self._shadow = {name: places[name] for name in self._live}
        self.renew()

    def _first(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if self.on_host:
            return empty_at_home(value, dtype).copy_(value)
        return value.to(dtype, copy=True)

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
        if weight is None:
            return
        generator: torch.Generator | None = None  # equal on every rank, and after a restore
        for shadows, live in self._parts():
            targets = [value.detach().float() for value in live]
            if shadows[0].dtype == torch.float32:
                torch._foreach_lerp_(shadows, targets, weight)
                continue
            if generator is None:
                generator = torch.Generator(live[0].device).manual_seed(mix(self.seed, self.num_images))
            moved = [shadow.float() for shadow in shadows]
            torch._foreach_lerp_(moved, targets, weight)
            torch._foreach_copy_(shadows, rounded_at_random(moved, generator))

    @property
    def is_beside(self) -> bool:
        """Whether it is in float32 on the device of its weights, so that a pass over them can move it."""
        return self.dtype == torch.float32 and not self.on_host

    def of(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the averages of these parameters, the live ones. KeyError for one that is not averaged."""
        found = {id(value): self._shadow[name] for name, value in self._live.items()}
        return [found[id(parameter)] for parameter in parameters]

    def _parts(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yield averages, on the device, beside their parameters: all in one, or parts where they need room there.

        Of what is spread over ranks, this one's shares.
        """
        shadows, live = locals_of(self._shadow.values()), locals_of(self._live.values())
        if not shadows:
            return
        cuts = [slice(None)] if self.is_beside else list(parts(shadows))
        groups = [shadows[cut] for cut in cuts]
        for cut, group in zip(cuts, visit(groups, live[0].device) if self.on_host else groups, strict=True):
            yield group, live[cut]

    @classmethod
    def named(cls, module: nn.Module, name: str, **settings: Any) -> EMA:
        """Return the average that a setting names: `decay:0.999`, `half-life:20000` (images) or `power:6.94`.

        UsageError for another text.
        """
        kind, value = parse_average(name)
        settings[{"half-life": "half_life_images"}.get(kind, kind)] = value
        return cls(module, **settings)

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
        """Return the averaged tensors by parameter name; they are the live ones, not copies."""
        return self._shadow

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on exactly."""
        return {"num_images": self.num_images, "shadow": dict(self._shadow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; raises KeyError or RuntimeError if it is of another network."""
        self.num_images = int(state["num_images"])
        copy_all_into(self._shadow, state["shadow"])


def rounded_at_random(values: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return float32 tensors in bfloat16, each rounded to one of its two neighbours, whose expectation it is.

    A random number is added to the half of a float32's bits that bfloat16 has not, which are then cut off
    (Gupta et al. 2015, arXiv:1502.02551).
    """
    flat = torch.cat([value.flatten() for value in values])
    bits = flat.view(torch.int32)
    bits += torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    bits &= -(2**16)
    rounded = flat.to(torch.bfloat16).split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(rounded, values, strict=True)]


class Weights:
    """Values by name that a network can be given for a while, as those of an average."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = values

    def parameters(self) -> Mapping[str, Tensor]:
        """Return the values by parameter name."""
        return self.values

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write them into the parameters of `module`, in their dtype. Raises KeyError if a name is missing."""
        parameters = dict(module.named_parameters())
        for name, value in self.values.items():
            parameters[name].copy_(value)


class Swapped(AbstractContextManager[nn.Module]):
    """Inside, a network has the weights of its average, and evaluates."""

    def __init__(self, network: nn.Module, average: EMA | Weights | None) -> None:
        self.network, self.average = network, average
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> nn.Module:
        self.training = self.network.training
        reshard(self.network)
        if self.average is not None:
            averaged = self.average.parameters()  # a frozen base is no part of it, and needs no copy
            live = self.network.named_parameters()
            self.kept = {name: value.detach().clone() for name, value in live if name in averaged}
            self.average.copy_to(self.network)
        return self.network.eval()

    def __exit__(self, *exception: object) -> None:
        reshard(self.network)
        with torch.no_grad():
            for name, value in self.network.named_parameters():
                if name in self.kept:
                    value.copy_(self.kept[name])
        self.kept = {}
        self.network.train(self.training)


def average_in_place(module: nn.Module, source: nn.Module, decay: float) -> EMA:
    """Return the average of `source`, whose tensors are the parameters of `module`: no second copy is kept."""
    places = {name: value.requires_grad_(False) for name, value in module.named_parameters()}
    average = EMA(source, decay=decay, places=places)
    module.eval()
    return average
