"""What the exact checker says of pictures whose captions are scenes; nothing of others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddx.errors import DdxError
from ddx.teachers.size import Size, height_and_width


def are_scenes(prompts: Sequence[str], resolution: Size) -> bool:
    """Return whether the checker can mark pictures of these prompts at this resolution."""
    from ddx.scenes.captions import parse_caption
    from ddx.scenes.render import RESOLUTION

    if height_and_width(resolution) != (RESOLUTION, RESOLUTION):
        return False
    try:
        for prompt in prompts:
            parse_caption(prompt)
    except DdxError:
        return False
    return True


def scene_scores(images: NDArray[np.uint8], captions: Sequence[str]) -> dict[str, float | None]:
    """Return the share of pictures uint8 `[N, 64, 64, 3]` for which each attribute of the caption holds.

    None for an attribute that no caption speaks of.
    """
    from ddx.scenes.checker import score

    found = score(images, captions)
    return {name: None if math.isnan(value) else round(value, 6) for name, value in found.items()}
