"""Texts in batches of one shape, so that an embedding does not depend, to its last bits, on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Row = TypeVar("Row")
ROWS = 8


def in_batches(texts: Sequence[str], encode: Callable[[list[str]], Sequence[Row]]) -> list[Row]:
    """Return what `encode` makes of each text; it is called with :data:`ROWS` of them, the last one repeated."""
    rows: list[Row] = []
    for start in range(0, len(texts), ROWS):
        chunk = list(texts[start : start + ROWS])
        rows += list(encode(chunk + [chunk[-1]] * (ROWS - len(chunk))))[: len(chunk)]
    return rows
