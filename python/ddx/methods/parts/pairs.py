"""Where the teacher takes noise: the other half of a pair that is solved inside a training step."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.errors import UsageError
from ddx.methods.base import Batch
from ddx.methods.parts.flow_view import FlowView
from ddx.teachers.base import Teacher
from ddx.teachers.samplers.names import OWN
from ddx.teachers.samplers.sampler import TeacherSampler, check_sampler

SAMPLER_HELP = "sampler of the teacher for solved pairs (own: Heun's rule on equal steps of flow time)"


def check_pairs(sampler: str, pairs: str, teacher: Teacher) -> None:
    """Raise UsageError for a sampler of stored pairs, which have theirs, and for one that the teacher cannot have."""
    if sampler == OWN:
        return
    if pairs == "stored":
        raise UsageError(
            f"sampler = {sampler} solves pairs, and pairs = stored are drawn already",
            hint=f"`ddx precompute --synthetic --synthetic-sampler {sampler}` draws them by it; leave --sampler away",
        )
    check_sampler(sampler, teacher)


@torch.no_grad()
def sampled_end(
    view: FlowView, sampler: str, start: Tensor, batch: Batch, guidance: Tensor | float, num_steps: int
) -> Tensor:
    """Return where a sampler of the guided teacher takes `start`, unit noise at the noisiest time on the flow path.

    Clean latents float32 `[B, C, h, w]`. The steps are those of the family's own clock.
    """
    noise = start / view.start(start.new_ones(()), view.t_max)
    return view.teacher.sample(
        batch.condition,
        batch.null,
        num_steps=num_steps,
        guidance=guidance,
        noise=noise,
        sampler=TeacherSampler(name=sampler),
    )
