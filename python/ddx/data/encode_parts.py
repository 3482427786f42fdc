"""Rows of the input, fetched, decoded and encoded, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx._core import Batch, Ingest, PartEnd
from ddx.data.core import core_errors
from ddx.data.encode import LatentBatches, encode_captions
from ddx.data.part import EncodedRow, Part
from ddx.data.plan import INGEST, Plan
from ddx.data.rows import COLUMNS, OK, PartRows

if TYPE_CHECKING:
    from ddx._core import Input
    from ddx.progress import Progress


def encoded_parts(plan: Plan, source: Input, parts: Sequence[int], progress: Progress) -> Iterator[Part]:
    """Yield `parts` of the source, in order; a row that fails is in the part's rows, with its reason."""
    settings = {name: getattr(plan.config, name) for name in INGEST}
    counts = {"ok": 0, "failed": 0}
    with core_errors():
        ingest = Ingest(
            source, resolution=plan.resolution, part_rows=plan.sizes.part_rows, parts=list(parts), **settings
        )
    with ingest:
        latents = LatentBatches(plan.teacher)
        while True:
            with core_errors():
                item = next(ingest, None)
            if item is None:
                return
            if isinstance(item, Batch):
                latents.add(item.rows, _tensor(item.images))
                progress.advance(item.count)
                continue
            skipped = sum(status != OK for status in item.status)
            part = _finish(plan, item, latents)
            counts["ok"] += len(part.encoded)
            counts["failed"] += len(part.rows.status) - len(part.encoded)
            progress.advance(skipped, **counts)
            yield part


def _tensor(buffer: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(buffer))


def _finish(plan: Plan, end: PartEnd, latents: LatentBatches) -> Part:
    """Encode the captions of the rows whose pictures are fine, and put the part together."""
    rows = PartRows(end.first_row, *(getattr(end, name) for name in COLUMNS))
    encoded, failed = latents.take()
    for row, reason in failed.items():
        rows.fail(row - rows.first_row, reason, "the picture's latents")
    places = rows.ok
    texts = dict(zip(places, encode_captions(plan.teacher, [rows.caption[place] for place in places]), strict=True))
    part = Part(end.part, rows, {})
    for place, text in texts.items():
        if isinstance(text, str):
            rows.fail(place, text, "the caption's embedding")
        else:
            part.encoded[place] = EncodedRow(encoded[rows.first_row + place], text)
    return part
