"""The size of a picture in pixels: the side of a square, or its height and width."""

from __future__ import annotations

import re

from ddx.errors import UsageError

Size = int | tuple[int, int]

_WORD = re.compile(r"(\d+)\s*[x×X]\s*(\d+)")


def height_and_width(size: Size) -> tuple[int, int]:
    """Return (height, width) in pixels."""
    return (size, size) if isinstance(size, int) else size


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of `768x512`, which is 768 pixels wide; UsageError for anything else."""
    match = _WORD.fullmatch(text.strip())
    if match is None or "0" in (match[1], match[2]):
        raise UsageError(f"size = {text!r} is not WIDTHxHEIGHT in pixels", hint="for example --size 768x512")
    return int(match[2]), int(match[1])


def pixels_of(resolution: int | None, size: str | None) -> Size | None:
    """Return what the settings `resolution` and `size` ask for; UsageError for both together."""
    if resolution is not None and size is not None:
        raise UsageError("--resolution and --size together", hint="give one of them")
    return resolution if size is None else parse_size(size)


def shown_size(size: Size) -> str:
    """Return the size as people write it, width first."""
    height, width = height_and_width(size)
    return f"{width}x{height}"
