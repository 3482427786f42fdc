"""The sizes that a student was trained at: which of them a picture has when none is asked for, and which are new to it.

A student of a store with aspect buckets was trained at several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddx.teachers.size import Size, height_and_width, shown_size


def trained_sizes(record: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of each, as a student's run.json has them: from the square outwards, wide before tall.

    Empty where it does not say.
    """
    side = record.get("resolution")
    found = [(int(height), int(width)) for width, height in record.get("buckets", ())]
    if not found:
        return () if side is None else ((int(side), int(side)),)
    return tuple(sorted(found, key=lambda size: (max(size) / min(size), -size[1])))


def size_of_picture(record: Mapping[str, Any], number: int, asked: Size | None) -> Size | None:
    """Return the size of the picture of this number, from 0: the one asked for, else the trained sizes in turns.

    None is the pipeline's own, of a student trained at one size.
    """
    sizes = trained_sizes(record)
    return asked if asked is not None or len(sizes) < 2 else sizes[number % len(sizes)]


def shown_sizes(record: Mapping[str, Any]) -> str:
    """Return the trained sizes as people write them."""
    return ", ".join(shown_size(size) for size in trained_sizes(record))


def unseen(record: Mapping[str, Any], asked: Size | None) -> str | None:
    """Return what to say of a size that the student was not trained at, None of one that it was, or may have been."""
    sizes = trained_sizes(record)
    if asked is None or not sizes or height_and_width(asked) in sizes:
        return None
    return f"the student was trained at {shown_sizes(record)}, and not at {shown_size(asked)}: pictures may be worse"
