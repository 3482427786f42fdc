"""Which adapter a pipeline folder needs, read off its ``model_index.json``."""

from __future__ import annotations

import torch

from ddx.teachers.base import Teacher
from ddx.teachers.components import parse_dtype
from ddx.teachers.hub import Source, no_adapter


def open_teacher(
    source: Source,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
    resolution: int | None,
    default_resolution: int | None = None,
    default_guidance: float | None = None,
) -> Teacher:
    """The teacher of a pipeline folder; a UsageError lists the supported families when it is none of them."""
    from ddx.teachers.sana import SanaTeacher
    from ddx.teachers.stable_diffusion import StableDiffusionTeacher

    adapters: dict[str, type[Teacher]] = {
        "SanaPipeline": SanaTeacher,
        "StableDiffusionPipeline": StableDiffusionTeacher,
    }
    pipeline = source.index.get("_class_name")
    if pipeline not in adapters:
        raise no_adapter(source.name, pipeline)
    place = torch.device(device)
    return adapters[pipeline](
        source,
        device=place,
        dtype=parse_dtype(dtype, place),
        resolution=resolution,
        default_resolution=default_resolution,
        default_guidance=default_guidance,
    )
