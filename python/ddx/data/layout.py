"""What a store looks like: its arrays, their shards and chunks, and its attributes.

zarr.json            attributes["ddx"]: fingerprint, settings, teacher, resolution, scaling, sizes; of a store that was
                     added to, `segments` with the parts, rows, sources and settings of each (`ddx.data.segments`)
latents              [N, C, h, w] float16, unscaled; chunk: one sample, shard: one part
latents_flip         the same of the mirrored pictures, on request
logvar, logvar_flip  the same of the logarithms of the variances, on request; `latents` are then the means
buckets/<W>x<H>/…    these arrays, with aspect buckets: one of each a bucket, in which the other rows are absent
bucket               [N] int32, with aspect buckets: which of its attribute "names" a row is in, or -1
text/tokens          [P·CAP, D] float16, ragged; chunk: TOKEN_CHUNK tokens, shard: one part of CAP tokens; on request
                     uint8 codes of float8 e4m3; of a teacher whose embeddings exceed float16, divided by a power of
                     two, the attribute "text_scale", as are null and validation
text/scale           [N], or [N, K], float32, beside such codes: what a caption's are multiplied with
text/offset, length  [N], or [N, K] of K captions a row: where one starts in text/tokens (-1: it is not there), and its
                     tokens
text/pooled          [N, W], or [N, K, W], float16, for families that have it
text/null            [L, D] float16, the null condition (and text/null_pooled)
text/validation/…    tokens, offset, length, pooled of the validation prompts
rows.parquet         one row per input row, written last: a store is complete when it is there
_ddx/                commit records, and what each part adds to rows.parquet
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ddx.data.buckets import Bucket

SCHEMA = 1
Array = np.ndarray[Any, Any]
# LAION's captions have 10 to 20 tokens: chunks of 4 waste 9 to 18 %, and the index stays small.
TOKEN_CHUNK = 4


@dataclass(frozen=True)
class Sizes:
    """The numbers that decide every shape of a store, and where in it the rows of a plan are."""

    rows: int
    part_rows: int
    buckets: tuple[Bucket, ...]
    text_width: int
    max_tokens: int
    pooled_width: int | None = None
    num_captions: int = 1
    flip: bool = False
    logvar: bool = False
    float8: bool = False
    text_scale: float = 1.0  # what all tokens are divided by
    first_part: int = 0

    @property
    def latent_kinds(self) -> list[str]:
        """What is stored of every picture: arrays of the shape of its latents."""
        kinds = ["latents", "logvar"] if self.logvar else ["latents"]
        return [kind + end for end in (("", "_flip") if self.flip else ("",)) for kind in kinds]

    @property
    def latent_arrays(self) -> dict[str, tuple[int, int, int]]:
        """These arrays of all buckets, and the shape of a row."""
        return {bucket.array(kind): bucket.latent_shape for bucket in self.buckets for kind in self.latent_kinds}

    @property
    def num_parts(self) -> int:
        """Number of parts; the last may be short."""
        return -(-self.rows // self.part_rows)

    @property
    def parts(self) -> range:
        """The numbers of the parts in the store, which may have other parts before them and behind."""
        return range(self.first_part, self.first_part + self.num_parts)

    @property
    def first_row(self) -> int:
        """What the first row is called in the store."""
        return self.first_part * self.part_rows

    @property
    def part_tokens(self) -> int:
        """CAP: the tokens that a part has room for, were every caption as long as the encoder allows."""
        return self.part_rows * self.num_captions * round_up(self.max_tokens)

    def part_range(self, part: int) -> range:
        """The rows of a part, as they are called in the store."""
        return range(part * self.part_rows, min(self.first_row + self.rows, (part + 1) * self.part_rows))


Tokens = TypeVar("Tokens", int, Array)


def round_up(num_tokens: Tokens) -> Tokens:
    """The tokens that a caption takes up: whole chunks."""
    return -(-num_tokens // TOKEN_CHUNK) * TOKEN_CHUNK


def overhead(counts: Array) -> float | None:
    """Stored tokens for one true token, where `counts[n]` captions have n: what starting on chunk boundaries costs."""
    lengths = np.arange(len(counts))
    total = int(counts @ lengths)
    return int(counts @ round_up(lengths)) / total if total else None


def array_specs(sizes: Sizes) -> list[dict[str, Any]]:
    """The per-row arrays, as `StoreWriter.create` takes them."""
    rows, part_rows = sizes.rows, sizes.part_rows
    # Without a second axis where there is one caption a row: the plain case is plain to read.
    captions, names = (
        ((rows,), ("row",)) if sizes.num_captions == 1 else ((rows, sizes.num_captions), ("row", "caption"))
    )
    specs = [
        *(
            spec(name, (rows, *shape), part_rows, 1, names=("row", "channel", "y", "x"))
            for name, shape in sizes.latent_arrays.items()
        ),
        _tokens_spec(sizes),
        spec("text/offset", captions, part_rows, part_rows, "int64", -1, names=names),
        spec("text/length", captions, part_rows, part_rows, "int32", 0, names=names),
    ]
    if sizes.float8:
        specs.append(spec("text/scale", captions, part_rows, part_rows, "float32", names=names))
    if len(sizes.buckets) > 1:
        buckets = {"names": [bucket.name for bucket in sizes.buckets]}
        specs.append(spec("bucket", (rows,), part_rows, part_rows, "int32", -1, names=("row",), attributes=buckets))
    if sizes.pooled_width:
        shape, axes = (*captions, sizes.pooled_width), (*names, "channel")
        specs.append(spec("text/pooled", shape, part_rows, 1, names=axes))
    return specs


def _tokens_spec(sizes: Sizes) -> dict[str, Any]:
    shape, names = (sizes.num_parts * sizes.part_tokens, sizes.text_width), ("token", "channel")
    if not sizes.float8:
        factor = scale_attribute(sizes)
        return spec("text/tokens", shape, sizes.part_tokens, TOKEN_CHUNK, names=names, attributes=factor)
    attributes = {"encoding": "float8_e4m3fn", "scale": "text/scale", **scale_attribute(sizes)}
    return spec("text/tokens", shape, sizes.part_tokens, TOKEN_CHUNK, "uint8", names=names, attributes=attributes)


def scale_attribute(sizes: Sizes) -> dict[str, float]:
    """What says how tokens are divided; nothing where they are not."""
    return {} if sizes.text_scale == 1.0 else {"text_scale": sizes.text_scale}


def whole_spec(
    path: str,
    shape: Sequence[int],
    data_type: str,
    names: tuple[str, ...],
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A small array of one chunk."""
    return spec(path, tuple(shape), shape[0], shape[0], data_type, names=names, attributes=attributes)


def spec(
    path: str,
    shape: tuple[int, ...],
    shard_rows: int,
    chunk_rows: int,
    data_type: str = "float16",
    fill_value: float | int = 0,
    *,
    names: tuple[str, ...],
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One array: shards and chunks cut its first axis."""
    return {
        "path": path,
        "shape": list(shape),
        "shard_rows": shard_rows,
        "chunk_rows": chunk_rows,
        "data_type": data_type,
        "fill_value": float(fill_value) if data_type.startswith("float") else fill_value,
        "dimension_names": list(names),
        "attributes": dict(attributes or {}),
    }
