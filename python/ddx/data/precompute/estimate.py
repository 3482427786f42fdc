"""What `ddx precompute --dry-run` says: the resolved settings, and the cost, measured on one batch of noise."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ddx.config import to_dict
from ddx.data.config import PrecomputeConfig
from ddx.data.layout import round_up
from ddx.data.precompute.append import find_place
from ddx.data.precompute.keeping import keep_networks
from ddx.data.precompute.plan import Plan, make_plan
from ddx.data.segments import read_attributes
from ddx.teachers.samplers.names import SAMPLERS

if TYPE_CHECKING:
    from ddx.data.precompute.keeping import EncodeKeeping
    from ddx.workspace import Workspace

CAPTIONS = 16
# A caption of the length that LAION's have; fetching and decoding run beside the encoders and are not in the estimate.
CAPTION = "a photograph of a harbour with many small boats at dawn"


def estimate(
    config: PrecomputeConfig,
    sources: Sequence[str],
    workspace: Workspace | None = None,
    keeping: EncodeKeeping | None = None,
) -> dict[str, Any]:
    """Return the settings and what the run would read, write and cost. Writes nothing; loads the encoders.

    keeping: where they are meanwhile, see `precompute`.

    Raises the errors that `precompute` would raise before it begins.
    """
    plan = make_plan(config, sources, workspace)
    found = read_attributes(plan.store)
    plan = find_place(plan, found)
    if keeping is not None:
        plan = keep_networks(plan, keeping)
    seconds_per_row, tokens, memory = _measure(plan)
    row_bytes = len(plan.sizes.latent_kinds) * _latent_bytes(plan) + round_up(tokens) * (
        plan.sizes.text_width * (1 if plan.sizes.float8 else 2) + 1
    )
    return {
        **to_dict(config),
        "reads": plan.reads,
        "writes": f"{plan.store}{' (exists; goes on with it)' if found else ''}, {plan.sizes.num_parts} parts",
        "estimated_disk_bytes": row_bytes * plan.sizes.rows,
        "estimated_memory_bytes": memory,
        "estimated_seconds": float(f"{seconds_per_row * plan.sizes.rows / plan.rank.world:.3g}"),
    }


def _measure(plan: Plan) -> tuple[float, int, int]:
    """Seconds a row of both encoders, or of text encoder and denoiser; tokens of a caption; peak memory in bytes."""
    import torch

    teacher, batch, how = plan.teacher, plan.config.batch_size, plan.synthetic
    captions = [CAPTION] * CAPTIONS
    (condition, *_) = teacher.encode_text(captions[:1])  # loads, and warms up
    if how is None:
        images = torch.randint(0, 256, (batch, plan.resolution, plan.resolution, 3), dtype=torch.uint8)
        teacher.encode_images(images[:1])
        seconds = _seconds(lambda: teacher.encode_images(images).sum().item()) / batch
    else:
        noise, null = torch.zeros(batch, *teacher.latent_shape(plan.resolution)), teacher.null_condition()
        draw = partial(teacher.sample, condition.expand(batch), null, guidance=how.guidance, noise=noise)
        draw(num_steps=1)
        seconds = SAMPLERS[how.sampler].passes(how.steps) * _seconds(lambda: draw(num_steps=1).sum().item()) / batch
    seconds += _seconds(lambda: teacher.encode_text(captions)) / CAPTIONS
    if teacher.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(teacher.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    part_bytes = plan.sizes.part_rows * len(plan.sizes.latent_kinds) * _latent_bytes(plan)
    return seconds, int(condition.mask.sum()), memory + 2 * part_bytes


def _latent_bytes(plan: Plan) -> int:
    return 2 * max(math.prod(bucket.latent_shape) for bucket in plan.sizes.buckets)


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
