"""A teacher of a hundred and fifty weights, and recorded random numbers: the two ends of a comparison in float64.

A toy is ``w2 tanh(w1 (x, time, class) + b1 + scalars . numbers) + b2``, on latents of 3x2x2: what a reference
implementation was run on can be written down, and so can everything that it drew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddx.methods.base import Batch
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.process import PredictionKind, Process
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.extra_input import ScalarEmbedder

LATENTS = (3, 2, 2)
WEIGHTS = ("w1", "b1", "w2", "b2")
NULL = -0.5  # the class that stands for no caption


class Fed(ScalarEmbedder):
    """The number that a network is fed, as it is."""

    def forward(self, value: Tensor) -> Tensor:
        return value.double().reshape(-1, 1)


class Toy(nn.Module):
    """Two layers on 12 numbers, a time and a class; and on guidance and interval, where those are fed."""

    def __init__(self, weights: dict[str, Any], *, takes: Sequence[str] = ()) -> None:
        super().__init__()
        for name in WEIGHTS:
            self.register_parameter(name, nn.Parameter(torch.tensor(weights[name], dtype=torch.float64)))
        self.squash = nn.Tanh()
        for name in takes:
            self.add_module(f"{name}_embedder", Fed(1).requires_grad_(False))

    def forward(self, x: Tensor, time: Tensor, classes: Tensor, **numbers: Tensor) -> Tensor:
        """Return `[B, 3, 2, 2]` for x, times `[B]` and classes `[B]`; `numbers` `[B]` outrank what is fed."""
        columns = [x.flatten(1), time.reshape(-1, 1), classes.reshape(-1, 1)]
        hidden = torch.cat(columns, dim=1) @ self.w1.T + self.b1
        for name, scale, none in (("guidance", 0.1, 1.0), ("interval", 0.7, 0.0)):
            number = numbers.get(name)
            fed = getattr(self, f"{name}_embedder", None)
            if number is None and fed is not None:
                number = fed.current()
            if number is not None:
                hidden = hidden + scale * (number.reshape(-1, 1) - none) * self.b1.detach().flip(0).sign()
        self.hidden = self.squash(hidden)
        return (self.hidden @ self.w2.T + self.b2).reshape(x.shape)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the gradient of a loss by every weight, 0 by those that it does not depend on."""
        weights = [getattr(self, name) for name in WEIGHTS]
        found = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        return dict(zip(WEIGHTS, found, strict=True))


class Heads(nn.Module):
    """Logits that are linear in a toy's hidden numbers: what stands for a discriminator."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, features: Sequence[Tensor], condition: Tensor | None = None) -> Tensor:
        (hidden,) = features
        return hidden.flatten(1) @ self.weight.T


class ToyTeacher(Teacher):
    """A frozen toy under any process, as far as a loss asks; its network is fed ``time(t)``.

    `scale`: how much larger the latents of ddx are than those that the network was made for.
    """

    family = "toy"
    default_guidance = 1.0

    def __init__(
        self,
        network: Toy,
        process: Process,
        prediction: PredictionKind,
        time: Callable[[Tensor], Tensor] = lambda t: t,
        *,
        scale: float = 1.0,
    ) -> None:
        self.process, self.prediction, self.time, self.latent_scale = process, prediction, time, scale
        self.name, self.device, self.dtype = "toy", torch.device("cpu"), torch.float64
        self.frozen = network.requires_grad_(False)

    def network(self) -> nn.Module:
        return self.frozen

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        time = self.time(t.double().expand(len(x_t)))
        found: Tensor = network(x_t / self.latent_scale, time, condition.tokens[:, 0, 0])
        return self.latent_scale * found

    def features(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        self.predict(network, x_t, t, condition)
        assert isinstance(network, Toy)
        return [network.hidden[:, :, None, None]]

    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        return [network.get_submodule("squash")]

    def condition(self, classes: Tensor) -> Condition:
        return Condition(classes.double()[:, None, None], torch.ones(len(classes), 1, dtype=torch.bool))

    def null_condition(self) -> Condition:
        return self.condition(torch.tensor([NULL]))

    def latent_shape(self, size: Any = None) -> tuple[int, int, int]:
        return LATENTS

    # what a loss has no use for

    compression = resolution_multiple = 1

    def _encode_pixels(self, pixels: Tensor) -> Any:
        raise NotImplementedError

    def encode_text(self, prompts: Any) -> Any:
        raise NotImplementedError

    def _text_fingerprint(self) -> dict[str, Any]:
        return {}

    def time_embedding_linear(self, network: nn.Module) -> nn.Linear:
        raise NotImplementedError

    def sampling_scheduler(self, num_steps: int, latent_shape: tuple[int, ...]) -> Any:
        raise NotImplementedError

    def student_scheduler(self, sampler: Any = "consistency") -> Any:
        raise NotImplementedError


class Recorded(RandomNumbers):
    """Random numbers that were drawn before, in the order in which a method asks for them; float64."""

    def __init__(
        self, *, normals: Sequence[Tensor] = (), uniforms: Sequence[Tensor] = (), parts: Sequence[Tensor] = ()
    ) -> None:
        super().__init__(0, 0, ())
        self.normals, self.uniforms, self.parts = list(normals), list(uniforms), tuple(parts)

    def normal(self, *shape: int) -> Tensor:
        return self.normals.pop(0)

    def uniform(self) -> Tensor:
        return self.uniforms.pop(0).flatten()

    def pick(self, *shares: float) -> tuple[Tensor, ...]:
        return self.parts


def toy_batch(teacher: ToyTeacher, x0: Tensor, classes: Tensor, random: RandomNumbers, **more: Any) -> Batch:
    """Return the batch of latents `[B, 3, 2, 2]` and classes `[B]`."""
    return Batch(x0=x0, condition=teacher.condition(classes), null=teacher.null_condition(), random=random, **more)
