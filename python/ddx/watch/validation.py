"""Validation prompts as grids and looks draw them: by the teacher's solver, and by a student as its export draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddx.methods.base import Method
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.teachers.condition import Condition

ROWS = 8  # pictures at a time


def innermost(method: Method) -> Method:
    """Return the method itself, without what is added around it."""
    while isinstance(inner := getattr(method, "method", None), Method):
        method = inner
    return method


class Validation:
    """N conditions of one row and their fixed noises, of as many steps as are ever drawn.

    `stream` is the "step" of the noises, below 0: no step of training. Latents are float32 `[N, C, h, w]`.
    """

    def __init__(
        self,
        method: Method,
        conditions: Sequence[Condition],
        null: Condition,
        latent_shape: tuple[int, int, int],
        *,
        most_steps: int,
        seed: int,
        stream: int,
    ) -> None:
        self.method, self.teacher = method, method.teacher
        device = self.teacher.device
        # float32 as in training: on a CPU, autocast refuses to join the store's float16 to anything
        self.conditions = [condition.to(device, torch.float32) for condition in conditions]
        self.null = null.to(device, torch.float32)
        random = RandomNumbers(seed, stream, range(len(self.conditions)), device)
        self.noises = [random.normal(*latent_shape) for _ in range(most_steps)]

    @property
    def guidance(self) -> float | None:
        """The scale that the student is made for; None: the teacher's default."""
        return getattr(innermost(self.method), "export_guidance", None)

    def teacher_draws(self, num_steps: int) -> Tensor:
        """Return where the teacher's guided ODE takes the first noises."""

        def draw(rows: slice, condition: Condition) -> Tensor:
            noise = self.noises[0][rows]
            return self.teacher.sample(condition, self.null, num_steps=num_steps, guidance=self.guidance, noise=noise)

        return self._in_batches(draw)

    def student_draws(self, student: nn.Module, num_steps: int) -> Tensor:
        """Return what the student draws in that many steps."""
        return self._in_batches(
            lambda rows, condition: self.method.draw(student, [n[rows] for n in self.noises[:num_steps]], condition)
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures uint8 `[N, H, W, 3]`, on the CPU."""
        return torch.cat([self.teacher.decode(latents[i : i + 1]) for i in range(len(latents))])

    def _in_batches(self, draw: Callable[[slice, Condition], Tensor]) -> Tensor:
        slices = [slice(start, start + ROWS) for start in range(0, len(self.conditions), ROWS)]
        return torch.cat([draw(rows, Condition.cat(self.conditions[rows])) for rows in slices]).float()


def ode_distance(drawn: Tensor, end: Tensor) -> float:
    """Return the root mean square difference, in scaled latents, of one-step pictures to the ends of the ODE."""
    return float((drawn - end).square().mean().sqrt())
