"""A family's real network that answers what a mixture's closed form says, in the conventions that it was trained in.

The real forward runs, so arguments have the names and shapes that it takes, and its time is read where its sinusoids
see it. Its output alone is replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddx.bench.mixtures.teacher import MixtureTeacher

SINUSOIDS = ("Timesteps", "TimestepEmbedder")  # the second makes them itself


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What a family's published network takes and gives.

    times: what its sinusoids see at the picture and at the noisiest time; linear between. sign: of its prediction, -1
    for one that gives ``x0 - eps``. layout: how it takes latents ``[B, C, h, w]``, any order of the same numbers.
    """

    times: tuple[float, float]
    sign: float = 1.0
    layout: Callable[[Tensor], Tensor] = lambda latents: latents


class ClosedForm:
    """The forward hook that answers; `model` is a network of the mixture's, its formula or an MLP."""

    def __init__(self, mixture: MixtureTeacher, model: nn.Module, shape: tuple[int, int, int]) -> None:
        self.mixture, self.model, self.shape = mixture, model, shape
        self.convention = Convention(times=(0.0, 1.0))
        self.seen: list[Tensor] = []

    def wear(self, network: nn.Module, convention: Convention) -> nn.Module:
        """Make `network`, whose own weights are frozen, answer for the model; returns it."""
        self.convention = convention
        network.requires_grad_(False)
        for layer in network.modules():
            if type(layer).__name__ in SINUSOIDS:
                layer.register_forward_hook(self._see)
        network.register_forward_hook(self._answer, with_kwargs=True)
        network.add_module("closed_form", self.model)
        return network

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self.seen.append(inputs[0].double() * getattr(layer, "scale", 1))

    def _answer(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the network's output with the model's answer in it. What nothing may read of it is NaN."""
        given = next(iter(inspect.signature(network.forward).bind(*args, **kwargs).arguments.values()))
        x = torch.stack(given) if isinstance(given, list) else given
        order = self.convention.layout(torch.arange(x[0].numel()).reshape(1, *self.shape)).flatten()
        latents = x.flatten(1)[:, order.argsort()].reshape(-1, *self.shape)
        picture, noise = self.convention.times
        t = ((self.seen[0] - picture) / (noise - picture)).clamp(min=1e-9) * self.mixture.process.t_max
        self.seen.clear()  # further numbers, such as sizes and a guidance, have sinusoids of their own
        condition = self.mixture.null_condition().expand(len(x))
        prediction = self.convention.sign * self.mixture.predict(self.model, latents, t, condition)
        answer = prediction.flatten(1)[:, order].reshape(x.shape)
        if isinstance(given, list):
            return (list(answer.unbind()),)
        if output[0].shape[1] == 2 * answer.shape[1]:  # a learned variance
            answer = torch.cat([answer, torch.full_like(answer, torch.nan)], dim=1)
        assert answer.shape == output[0].shape
        return (answer,)
