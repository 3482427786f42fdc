"""The size of a picture in pixels: the side of a square, or its height and width."""

from __future__ import annotations

Size = int | tuple[int, int]


def height_and_width(size: Size) -> tuple[int, int]:
    """Return (height, width) in pixels."""
    return (size, size) if isinstance(size, int) else size
