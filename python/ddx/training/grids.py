"""Grids of samples while training: a row a step count, a column a prompt, fixed noise, the teacher's picture on top.

They need neither the text encoder, whose embeddings the store holds, nor the autoencoder between two grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.methods.base import Method
from ddx.teachers.condition import Condition
from ddx.training.config import DistillConfig
from ddx.watch.validation import Validation, ode_distance, rows_at_once

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
        settings: Any = {"most_steps": most, "seed": config.seed, "stream": NOISE}
        settings |= {"rows": rows_at_once(config.micro_batch_size), "in_parts": config.look_decoder == "parts"}
        self.validation = Validation(method, rows, null, latent_shape, **settings)

    @cached_property
    def reference(self) -> Tensor:
        """What the teacher draws, once."""
        return self.validation.teacher_draws(self.reference_steps)

    def draw(self, student: nn.Module) -> dict[int, Tensor]:
        """Return the latents that `student` draws by step count, those of one step in any case."""
        return {steps: self.validation.student_draws(student, steps) for steps in dict.fromkeys((*self.steps, 1))}

    def write(self, path: Path | None, drawn: Mapping[int, Tensor]) -> dict[str, float]:
        """Write the grid; return `ode_distance`: the root mean square difference, in scaled latents, between the
        student's one-step pictures and the end points of the teacher's guided ODE from the same noise.

        path: None on ranks that only take part, since the networks are spread over them.
        """
        if path is not None:
            rows = [self.reference, *(drawn[steps] for steps in self.steps)]
            _save(path, torch.stack([self.validation.decode(row) for row in rows]))
            self.validation.teacher.unload("vae")
        return {"ode_distance": ode_distance(drawn[1], self.reference)}


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
