"""One PNG of many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 8192


def make_grid(pictures: Sequence[Image], *, columns: int | None = None, gap: int = 2) -> Image:
    """Return the pictures in rows of `columns` (None: nearly square) on white, row by row.

    A cell has the largest width and the largest height; smaller pictures lie in its middle. Pictures are halved as
    often as it takes to keep the grid under 8192 pixels a side.
    """
    from PIL import Image as images

    if not pictures:
        raise ValueError("a grid needs a picture")
    columns = columns or round(len(pictures) ** 0.5 + 0.49)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    halved = 1
    while max(columns * (width + gap), rows * (height + gap)) > MAX_SIDE and min(width, height) > 16:
        width, height, halved = width // 2, height // 2, halved * 2
    canvas = images.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, picture in enumerate(pictures):
        small = picture if halved == 1 else picture.resize((picture.width // halved, picture.height // halved))
        left = number % columns * (width + gap) + (width - small.width) // 2
        top = number // columns * (height + gap) + (height - small.height) // 2
        canvas.paste(small.convert("RGB"), (left, top))
    return canvas


def save_grid(path: Path, pictures: Sequence[Image], *, columns: int | None = None) -> Path:
    """Write `make_grid` as a PNG; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_grid(pictures, columns=columns).save(path)
    return path
