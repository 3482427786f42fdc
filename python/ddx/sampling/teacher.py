"""Drawing with a teacher: batches over encoded prompts, one seed a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddx.progress import NullProgress, Progress
from ddx.sampling.pipeline import not_finite

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition
    from ddx.teachers.samplers.sampler import TeacherSampler
    from ddx.teachers.size import Size


def draw_with_teacher(
    teacher: Teacher,
    conditions: Sequence[Condition],
    null: Condition,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float | None = None,
    resolution: Size | None = None,
    batch_size: int = 32,
    sampler: TeacherSampler | None = None,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Return pictures uint8 `[N, H, W, 3]` of N conditions of one row.

    `guidance` None is the teacher's default, `sampler` None the family's deterministic solver. The progress, if given,
    is advanced by one a picture.
    """
    import torch

    from ddx.teachers.condition import Condition

    progress = progress or NullProgress()
    drawn = []
    for start in range(0, len(conditions), batch_size):
        rows = slice(start, start + batch_size)
        latents = teacher.sample(
            Condition.cat(list(conditions[rows])),
            null,
            num_steps=steps,
            guidance=guidance,
            generators=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]],
            resolution=resolution,
            sampler=sampler,
        )
        if not bool(torch.isfinite(latents).all()):
            raise not_finite(f"the teacher {teacher.name}")
        drawn.append(teacher.decode(latents).numpy())
        progress.advance(len(latents))
    return np.concatenate(drawn)
