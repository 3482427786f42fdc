"""One part in memory: what became of its rows, and the encoded ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ddx.data.layout import Array, Sizes, round_up
from ddx.data.precompute.encode import Text, pack
from ddx.data.rows import PartRows, piece_path, read_rows

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class EncodedRow:
    """Unscaled float16 `[C, h, w]` by array (`Sizes.latent_arrays`), and the captions; None for one that is blank."""

    latents: dict[str, Array]
    texts: list[Text | None]

    def pooled(self, sizes: Sizes) -> Array:
        """The pooled embeddings of its captions, float16 `[W]` or `[K, W]`; zeros for one that is blank."""
        assert sizes.pooled_width is not None
        found = np.zeros((sizes.num_captions, sizes.pooled_width), np.float16)
        for number, text in enumerate(self.texts):
            if text is not None:
                found[number] = text.pooled
        return found if sizes.num_captions > 1 else found[0]


@dataclass
class Part:
    """`encoded` has the rows that are fine, by their place in the part."""

    number: int
    rows: PartRows
    encoded: dict[int, EncodedRow]

    def shards(self, sizes: Sizes) -> dict[str, tuple[list[int] | None, Array]]:
        """The contents of the part's shard of every array: numbers of its chunks (None: the first ones), and data."""
        ok = self.rows.ok
        there = [
            (place, number, text)
            for place in ok
            for number, text in enumerate(self.encoded[place].texts)
            if text is not None
        ]
        captions = pack([text for _, _, text in there])
        shape = (sizes.part_rows, sizes.num_captions)
        offset, length = np.full(shape, -1, np.int64), np.zeros(shape, np.int32)
        scale = np.zeros(shape, np.float32)
        for index, (place, number, _) in enumerate(there):
            offset[place, number] = captions.offset[index] + self.number * sizes.part_tokens
            length[place, number] = captions.length[index]
            scale[place, number] = captions.scale[index]
        shards: dict[str, tuple[list[int] | None, Array]] = {}
        for name in sizes.latent_arrays:
            places = [place for place in ok if name in self.encoded[place].latents]
            shards[name] = places, _stack([self.encoded[place].latents[name] for place in places])
        if len(sizes.buckets) > 1:
            shards["bucket"] = None, self._buckets(sizes)
        shards |= {"text/tokens": (None, captions.tokens), "text/offset": (None, offset), "text/length": (None, length)}
        if sizes.float8:
            shards["text/scale"] = None, scale
        if sizes.pooled_width:
            shards["text/pooled"] = ok, _stack([self.encoded[place].pooled(sizes) for place in ok])
        return shards

    def _buckets(self, sizes: Sizes) -> Array:
        """The number of each row's bucket, int32 `[part_rows]`, -1 for one that failed."""
        numbers = {bucket.array("latents"): number for number, bucket in enumerate(sizes.buckets)}
        of_row = np.full(sizes.part_rows, -1, np.int32)
        for place in self.rows.ok:
            of_row[place] = next(numbers[name] for name in self.encoded[place].latents if name in numbers)
        return of_row


def read_part(store: Path, number: int, sizes: Sizes) -> Part:
    """A part that is done, as it was before it was written; through zarr-python."""
    import zarr

    def array(name: str, first: int, end: int) -> Array:
        return np.asarray(zarr.open_array(str(store), path=name, mode="r")[first:end])

    rows = read_rows(store / piece_path(number))
    ok, first, end = rows.ok, rows.first_row, rows.first_row + len(rows.status)
    latents = _read_latents(store, rows, sizes)
    pooled = None
    if sizes.pooled_width:
        pooled = array("text/pooled", first, end).reshape(end - first, sizes.num_captions, sizes.pooled_width)
    start = number * sizes.part_tokens
    shape = (end - first, sizes.num_captions)
    offset = array("text/offset", first, end).reshape(shape) - start
    length = array("text/length", first, end).reshape(shape)
    scale = array("text/scale", first, end).reshape(shape) if sizes.float8 else np.ones(shape)
    used = int((offset + round_up(length))[length > 0].max(initial=0))
    tokens = array("text/tokens", start, start + used)
    encoded = {}
    for place in ok:
        texts = [
            Text(tokens[begin : begin + num], None if pooled is None else pooled[place, number], float(factor))
            if num
            else None
            for number, (begin, num, factor) in enumerate(zip(offset[place], length[place], scale[place], strict=True))
        ]
        encoded[place] = EncodedRow(latents[place], texts)
    return Part(number, rows, encoded)


def _read_latents(store: Path, rows: PartRows, sizes: Sizes) -> dict[int, dict[str, Array]]:
    """Of each row that is fine its arrays, by its place."""
    import zarr

    group, first = zarr.open_group(str(store), mode="r"), rows.first_row
    numbers = np.zeros(len(rows.status), np.int64)
    if len(sizes.buckets) > 1:
        numbers = np.asarray(group["bucket"][first : first + len(numbers)])
    latents: dict[int, dict[str, Array]] = {place: {} for place in rows.ok}
    for number, bucket in enumerate(sizes.buckets):
        places = [place for place in rows.ok if numbers[place] == number]
        for name in [bucket.array(kind) for kind in sizes.latent_kinds] if places else []:
            values = np.asarray(group[name].oindex[[first + place for place in places]])
            for place, value in zip(places, values, strict=True):
                latents[place][name] = value
    return latents


def _stack(arrays: list[Array]) -> Array:
    return np.stack(arrays) if arrays else np.empty(0, np.float16)
