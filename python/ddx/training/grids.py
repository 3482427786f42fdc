"""Grids of samples while training: a row a step count, a column a prompt, fixed noise, the teacher's picture on top.

They need neither the text encoder, whose embeddings the store holds, nor the autoencoder between two grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.methods.base import Method
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.training.config import DistillConfig

NUM_PER_BATCH = 8


class SampleGrid:
    """The validation prompts of a store, drawn by the teacher once and by the student whenever asked."""

    def __init__(
        self,
        method: Method,
        config: DistillConfig,
        conditions: Sequence[Condition],
        null: Condition,
        latent_shape: tuple[int, int, int],
    ) -> None:
        self.method, self.config = method, config
        self.teacher: Teacher = method.teacher
        # float32 as in training: on a CPU, autocast refuses to join the store's float16 to anything.
        self.conditions = [c.to(self.teacher.device, torch.float32) for c in conditions[: config.sample_prompts]]
        self.null = null.to(self.teacher.device, torch.float32)
        random = RandomNumbers(config.seed, -1, range(len(self.conditions)), self.teacher.device)
        self.noises = [random.normal(*latent_shape) for _ in range(max(config.sample_steps))]
        self._reference: Tensor | None = None

    def write(self, path: Path, student: nn.Module) -> dict[str, float]:
        """Write the grid; return `ode_distance`: the root mean square difference, in scaled latents, between the
        student's one-step pictures and the end points of the teacher's guided ODE from the same noise.
        """
        if self._reference is None:
            self._reference = self._in_batches(self._teacher_draws)
        rows = [self._reference, *(self._student_draws(student, steps) for steps in self.config.sample_steps)]
        pictures = torch.stack([self._decode(row) for row in rows])
        self.teacher.unload("vae")
        _save(path, pictures)
        first = rows[1] if self.config.sample_steps[0] == 1 else self._student_draws(student, 1)
        return {"ode_distance": float((first - self._reference).square().mean().sqrt())}

    def _teacher_draws(self, rows: slice, condition: Condition) -> Tensor:
        guidance = getattr(self.method, "export_guidance", None)
        return self.teacher.sample(
            condition, self.null, num_steps=self.config.reference_steps, guidance=guidance, noise=self.noises[0][rows]
        )

    def _student_draws(self, student: nn.Module, num_steps: int) -> Tensor:
        return self._in_batches(
            lambda rows, condition: self.method.draw(student, [n[rows] for n in self.noises[:num_steps]], condition)
        )

    def _in_batches(self, draw: Any) -> Tensor:
        starts = range(0, len(self.conditions), NUM_PER_BATCH)
        slices = [slice(start, start + NUM_PER_BATCH) for start in starts]
        return torch.cat([draw(rows, Condition.cat(self.conditions[rows])) for rows in slices]).float()

    def _decode(self, latents: Tensor) -> Tensor:
        return torch.cat([self.teacher.decode(latents[i : i + 1]) for i in range(len(latents))])


def _save(path: Path, pictures: Tensor, gap: int = 2) -> None:
    """Write uint8 pictures `[rows, columns, H, W, 3]` as one PNG on white."""
    from PIL import Image

    rows, columns, height, width, _ = pictures.shape
    canvas = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = pictures[row, column]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas.numpy()).save(path)
