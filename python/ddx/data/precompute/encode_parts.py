"""Pictures and captions through the teacher's encoders, part by part; or captions alone, which the teacher draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from ddx.data.precompute.draw import draw_latents
from ddx.data.precompute.encode import LatentBatches, Text, encode_captions
from ddx.data.precompute.part import EncodedRow, Part
from ddx.data.precompute.pictures import End, Pictures
from ddx.data.precompute.plan import Plan
from ddx.data.rows import CUT, OK

if TYPE_CHECKING:
    from ddx.progress import Progress


def encoded_parts(plan: Plan, items: Iterable[Pictures | End], progress: Progress) -> Iterator[Part]:
    """Yield the parts of these items, in order; a row that fails is in the part's rows, with its reason."""
    counts = {"ok": 0, "failed": 0}
    latents = LatentBatches(plan.teacher, flip=plan.config.flip, posterior=plan.config.posterior)
    for item in items:
        if isinstance(item, Pictures):
            height, width = item.images.shape[1:3]
            bucket = next(it for it in plan.sizes.buckets if (it.width, it.height) == (width, height))
            latents.add(item.rows, torch.from_numpy(item.images), bucket)
            progress.advance(len(item.rows), **item.stats)
            continue
        skipped = sum(status != OK for status in item.rows.status)
        part = _finish(plan, item, latents) if plan.synthetic is None else _draw(plan, item, progress)
        counts["ok"] += len(part.encoded)
        counts["failed"] += len(part.rows.status) - len(part.encoded)
        progress.advance(skipped, **counts)
        yield part


def _finish(plan: Plan, end: End, latents: LatentBatches) -> Part:
    """Encode the captions of the rows whose pictures are fine, and put the part together."""
    rows, names = end.rows, end.names
    encoded, failed = latents.take()
    for place, name in enumerate(names):
        if name in failed:
            rows.fail(place, failed[name], "the picture's latents")
    part = Part(end.number, rows, {})
    texts = _encode_texts(plan, {place: end.captions[place] for place in rows.ok})
    for place, found in texts.items():
        fine = [text if isinstance(text, Text) else None for text in found]
        if any(fine):
            part.encoded[place] = EncodedRow(encoded[names[place]], fine)
            rows.detail[place] = _cut(plan, end.captions[place])
        else:
            rows.fail(place, next(reason for reason in found if isinstance(reason, str)), "the caption's embedding")
    return part


def _draw(plan: Plan, end: End, progress: Progress) -> Part:
    """Encode the captions of a part, and let the teacher draw each row's first one."""
    rows, names = end.rows, end.names
    texts: dict[int, list[Text | None]] = {}
    for place, found in _encode_texts(plan, {place: end.captions[place] for place in rows.ok}).items():
        texts[place] = [text if isinstance(text, Text) else None for text in found]
        if not any(texts[place]):
            rows.fail(place, next(reason for reason in found if isinstance(reason, str)), "the caption's embedding")
    firsts = {names[place]: next(filter(None, texts[place])) for place in rows.ok}
    drawn, failed = draw_latents(plan, firsts, progress)
    part = Part(end.number, rows, {})
    for place in rows.ok:
        rows.source[place] = plan.teacher.name
        if names[place] in failed:
            rows.fail(place, failed[names[place]], "the teacher's drawing")
        else:
            part.encoded[place] = EncodedRow(drawn[names[place]], texts[place])
            rows.detail[place] = _cut(plan, end.captions[place])
    return part


def _cut(plan: Plan, captions: list[str]) -> str:
    """What to say of a row whose caption, or one of them, is longer than the encoder reads; nothing of others."""
    too_long = next((cut for text in captions if text and (cut := plan.teacher.cut(text)) is not None), None)
    return "" if too_long is None else f"{CUT}: {too_long.counts}"


def _encode_texts(plan: Plan, captions: dict[int, list[str]]) -> dict[int, list[Text | str | None]]:
    """Encode all captions at once; of one that cannot be stored the reason, None for one that is blank."""
    there = [(place, number) for place, row in captions.items() for number, text in enumerate(row) if text]
    encoded = encode_captions(
        plan.teacher,
        [captions[place][number] for place, number in there],
        float8=plan.sizes.float8,
        text_scale=plan.sizes.text_scale,
        at_once=plan.captions_at_once,
    )
    texts: dict[int, list[Text | str | None]] = {place: [None] * len(row) for place, row in captions.items()}
    for (place, number), text in zip(there, encoded, strict=True):
        texts[place][number] = text
    return texts
