"""`--synthetic`: the teacher draws what the captions say, where other stores hold the latents of given pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ddx.data.float8 import from_float8
from ddx.data.layout import Array
from ddx.data.precompute.encode import Text, unfit

if TYPE_CHECKING:
    from ddx.data.precompute.plan import Plan
    from ddx.progress import Progress
    from ddx.teachers.condition import Condition


def draw_latents(
    plan: Plan, texts: Mapping[int, Text], progress: Progress
) -> tuple[dict[int, dict[str, Array]], dict[int, str]]:
    """Draw the rows of a part from their captions as they are stored.

    Returns unscaled latents, float16 `[C, h, w]`, by row and array, and why the other rows failed. The batches of a
    part are the same in every run, and so are its bytes.
    """
    from ddx.teachers.condition import Condition

    teacher, how = plan.teacher, plan.synthetic
    assert how is not None
    (bucket,) = plan.sizes.buckets
    name, null = bucket.array("latents"), teacher.null_condition()
    drawn: dict[int, dict[str, Array]] = {}
    failed: dict[int, str] = {}
    rows = list(texts)
    for start in range(0, len(rows), plan.config.batch_size):
        batch = rows[start : start + plan.config.batch_size]
        generators = [how.generator(row - plan.sizes.first_row) for row in batch]
        latents = teacher.sample(
            Condition.cat([as_condition(texts[row], plan.sizes.text_scale) for row in batch]),
            null,
            num_steps=how.steps,
            guidance=how.guidance,
            generators=generators,
            resolution=plan.resolution,
            sampler=plan.sampler,
        )
        unscaled = teacher.unscale(latents).cpu()
        for row, latent in zip(batch, unscaled, strict=True):
            reason = unfit(float(latent.abs().max()))
            if reason is None:
                drawn[row] = {name: latent.half().numpy()}
            else:
                failed[row] = reason
        progress.advance(len(batch))
    return drawn, failed


def as_condition(text: Text, text_scale: float = 1.0) -> Condition:
    """Return a stored caption as a condition of one row, float32: what training will see."""
    from ddx.teachers.condition import Condition

    tokens = torch.from_numpy(text.tokens)[None]
    if tokens.dtype == torch.uint8:
        tokens = from_float8(tokens, torch.tensor([text.scale]))
    pooled = None if text.pooled is None else torch.from_numpy(text.pooled).float()[None]
    return Condition(text_scale * tokens.float(), torch.ones(tokens.shape[:2], dtype=torch.bool), pooled)
