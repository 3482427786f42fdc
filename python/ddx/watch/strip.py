"""The pictures of a look in one small file: a row a step count and a seed, a column a prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

SEEDS = 2  # of each prompt: enough to see whether they differ
SIDE = 96  # pixels of a picture, at most
COLUMNS = 8


def save_strip(path: Path, pictures: Mapping[int, Tensor]) -> Path:
    """Write the pictures, uint8 `[P, S, H, W, 3]` by step count, as one JPEG, whole or not at all; return its path."""
    from PIL import Image

    from ddx.sampling.grid import make_grid

    rows = [drawn[:COLUMNS, seed] for drawn in pictures.values() for seed in range(min(SEEDS, drawn.shape[1]))]
    small = [Image.fromarray(picture.numpy()) for row in rows for picture in row]
    for picture in small:
        picture.thumbnail((SIDE, SIDE))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    make_grid(small, columns=len(rows[0])).save(temporary, "JPEG", quality=85)
    os.replace(temporary, path)
    return path
