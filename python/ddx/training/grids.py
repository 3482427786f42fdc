"""Grids of samples while training: a row a step count, a column a prompt, fixed noise, the teacher's picture on top.

They need neither the text encoder, whose embeddings the store holds, nor the autoencoder between two grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddx.methods.base import Method
from ddx.teachers.condition import Condition
from ddx.training.config import DistillConfig
from ddx.watch.validation import Validation, ode_distance

NOISE = -1  # the "step" of the noises


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
        self.steps, self.reference_steps = config.sample_steps, config.reference_steps
        rows, most = conditions[: config.sample_prompts], max(config.sample_steps)
        self.validation = Validation(method, rows, null, latent_shape, most_steps=most, seed=config.seed, stream=NOISE)
        self._reference: Tensor | None = None

    def write(self, path: Path | None, student: nn.Module) -> dict[str, float]:
        """Write the grid; return `ode_distance`: the root mean square difference, in scaled latents, between the
        student's one-step pictures and the end points of the teacher's guided ODE from the same noise.

        path: None on ranks that only take part, since the networks are spread over them.
        """
        drawn = self.validation
        if self._reference is None:
            self._reference = drawn.teacher_draws(self.reference_steps)
        rows = [self._reference, *(drawn.student_draws(student, steps) for steps in self.steps)]
        if path is not None:
            _save(path, torch.stack([drawn.decode(row) for row in rows]))
            drawn.teacher.unload("vae")
        first = rows[1] if self.steps[0] == 1 else drawn.student_draws(student, 1)
        return {"ode_distance": ode_distance(first, self._reference)}


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
