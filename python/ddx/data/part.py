"""One part in memory: what became of its rows, and the encoded ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ddx.data.encode import Array, Text, pack
from ddx.data.layout import Sizes, round_up
from ddx.data.rows import PartRows

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class EncodedRow:
    """Unscaled float16 latents `[C, h, w]` and the caption."""

    latents: Array
    text: Text


@dataclass
class Part:
    """`encoded` has the rows that are fine, by their place in the part."""

    number: int
    rows: PartRows
    encoded: dict[int, EncodedRow]

    def shards(self, sizes: Sizes) -> dict[str, tuple[list[int] | None, Array]]:
        """The contents of the part's shard of every array: numbers of its chunks (None: the first ones), and data."""
        ok = self.rows.ok
        captions = pack([self.encoded[place].text for place in ok])
        offset = np.full(sizes.part_rows, -1, np.int64)
        length = np.zeros(sizes.part_rows, np.int32)
        offset[ok] = captions.offset + self.number * sizes.part_tokens
        length[ok] = captions.length
        shards: dict[str, tuple[list[int] | None, Array]] = {
            "latents": (ok, np.stack([self.encoded[place].latents for place in ok]) if ok else np.empty(0, np.float16)),
            "text/tokens": (None, captions.tokens),
            "text/offset": (None, offset),
            "text/length": (None, length),
        }
        if sizes.pooled_width:
            shards["text/pooled"] = (ok, np.empty(0, np.float16) if captions.pooled is None else captions.pooled)
        return shards


def read_part(store: Path, number: int, sizes: Sizes) -> Part:
    """A part that is done, as it was before it was written; through zarr-python."""
    import zarr

    def array(name: str, first: int, end: int) -> Array:
        return np.asarray(zarr.open_array(str(store), path=name, mode="r")[first:end])

    rows = PartRows.read(store, number)
    ok, first, end = rows.ok, rows.first_row, rows.first_row + len(rows.status)
    latents, length = array("latents", first, end), array("text/length", first, end)
    pooled = array("text/pooled", first, end) if sizes.pooled_width else None
    start = number * sizes.part_tokens
    offset = array("text/offset", first, end) - start
    used = max((int(offset[place]) + round_up(int(length[place])) for place in ok), default=0)
    tokens = array("text/tokens", start, start + used)
    encoded = {}
    for place in ok:
        text = Text(tokens[offset[place] : offset[place] + length[place]], None if pooled is None else pooled[place])
        encoded[place] = EncodedRow(latents[place], text)
    return Part(number, rows, encoded)
