"""Validation prompts as grids and looks draw them: by the teacher's solver, and by a student as its export draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddx.methods.base import Method
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.offload.keeping import LEAVES, Keeping, keep
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition

ROWS = 8  # pictures at a time, at most
IN_PARTS = Keeping(parts={"vae": LEAVES}, maps=2**28)
"""How a decoder is kept that takes little: layers come in when they compute, and maps of some ten megabytes leave."""


def rows_at_once(micro_batch_size: int | None) -> int:
    """Return how many pictures are drawn at a time: as many as a training pass has rows, whose memory is there."""
    return min(ROWS, micro_batch_size or ROWS)


def innermost(method: Method) -> Method:
    """Return the method itself, without what is added around it."""
    while isinstance(inner := getattr(method, "method", None), Method):
        method = inner
    return method


def drawing_guidance(method: Method) -> float:
    """Return the scale that the student is made for, else the teacher's default."""
    own = getattr(innermost(method), "export_guidance", None)
    return method.teacher.default_guidance if own is None else own


def decode_in_parts(teacher: Teacher) -> None:
    """Load the autoencoder so that decoding takes little of the device, until it is unloaded. A loaded one stays.

    Pictures are those of the whole decoder, but for the rounding of the last bit of a convolution.
    """
    if teacher.is_loaded("vae"):
        return
    with teacher.on_host():
        vae = teacher.vae()
    keep({"vae": vae}, IN_PARTS, teacher.device)


class Validation:
    """N conditions of one row and their fixed noises, of as many steps as are ever drawn.

    `stream` is the "step" of the noises, below 0: no step of training. `rows` are drawn at a time; `in_parts`: the
    decoder takes little of the device, see `decode_in_parts`. Latents are float32 `[N, C, h, w]`.
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
        rows: int = ROWS,
        in_parts: bool = False,
    ) -> None:
        self.method, self.teacher, self.rows, self.in_parts = method, method.teacher, rows, in_parts
        device = self.teacher.device
        # float32 as in training: on a CPU, autocast refuses to join the store's float16 to anything
        self.conditions = [condition.to(device, torch.float32) for condition in conditions]
        self.null = null.to(device, torch.float32)
        random = RandomNumbers(seed, stream, range(len(self.conditions)), device)
        self.noises = [random.normal(*latent_shape) for _ in range(most_steps)]

    @property
    def guidance(self) -> float:
        """See :func:`drawing_guidance`."""
        return drawing_guidance(self.method)

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
        if self.in_parts:
            decode_in_parts(self.teacher)
        return torch.cat([self.teacher.decode(latents[i : i + 1]) for i in range(len(latents))])

    def _in_batches(self, draw: Callable[[slice, Condition], Tensor]) -> Tensor:
        slices = [slice(start, start + self.rows) for start in range(0, len(self.conditions), self.rows)]
        return torch.cat([draw(rows, Condition.cat(self.conditions[rows])) for rows in slices]).float()


def ode_distance(drawn: Tensor, end: Tensor) -> float:
    """Return the root mean square difference, in scaled latents, of one-step pictures to the ends of the ODE."""
    return float((drawn - end).square().mean().sqrt())
