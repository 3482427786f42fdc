"""`ddx precompute`: images and captions into a store. The same call again does what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx._core import Batch, Ingest
from ddx.config import to_dict
from ddx.data import rows as row_table
from ddx.data.config import PrecomputeConfig
from ddx.data.core import core_errors
from ddx.data.create import open_writer
from ddx.data.encode import LatentBatches, encode_captions
from ddx.data.part_writer import Part, PartWriter
from ddx.data.plan import INGEST, Plan, make_plan
from ddx.data.ranks import cannot_write, only_writer
from ddx.data.rows import PartRows
from ddx.errors import DdxError
from ddx.progress import NullProgress
from ddx.run_record import versions, write_run

if TYPE_CHECKING:
    from ddx._core import StoreWriter
    from ddx.progress import Progress
    from ddx.workspace import Workspace

SECONDS_BETWEEN_LOOKS = 0.5


def precompute(
    config: PrecomputeConfig,
    sources: Sequence[str],
    *,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> Path:
    """Encode every row of the sources, and return the path of the complete store.

    A row that fails is recorded and skipped. A part that is committed is kept: after a stop the same call goes on with
    the rest. Under torchrun the ranks take disjoint parts, and the first one completes the store.

    Raises UsageError when the store at that place was made with other settings (naming the first), DdxError when the
    input, the teacher or the disk fails. KeyboardInterrupt leaves what is finished.
    """
    progress = progress or NullProgress()
    plan = make_plan(config, sources, workspace)
    if not plan.rank.is_first:
        progress = NullProgress()
    progress.log(plan.reads)
    with only_writer(plan.store, plan.rank):
        plan, writer = open_writer(plan)
        done = {int(record["part"]): record for record in committed(writer, plan)}
        parts = plan.my_parts(set(done))
        if done:
            progress.log(f"{plan.store} has {len(done)} of {plan.sizes.num_parts} parts; going on with the rest")
        if parts:
            _run_parts(plan, writer, parts, progress)
        if plan.rank.is_first:
            _complete(plan, writer, progress)
    return plan.store


def committed(writer: StoreWriter, plan: Plan) -> list[dict[str, Any]]:
    """The commit records of the parts that are done, in order."""
    return [json.loads(record) for record in writer.committed(plan.sizes.num_parts)]


def _run_parts(plan: Plan, writer: StoreWriter, parts: list[int], progress: Progress) -> None:
    """Encode and write `parts`. What is complete when this ends, however it ends, is on disk."""
    settings = {name: getattr(plan.config, name) for name in INGEST}
    settings["part_rows"] = plan.sizes.part_rows
    num_rows = sum(len(plan.sizes.part_range(part)) for part in parts)
    progress.start("precompute", num_rows, "rows")
    with core_errors():
        ingest = Ingest(plan.input, resolution=plan.resolution, parts=parts, **settings)
    counts = {"ok": 0, "failed": 0}
    part_writer = PartWriter(writer, plan.sizes)
    try:
        with part_writer, ingest, core_errors():
            latents = LatentBatches(plan.teacher)
            for item in ingest:
                if isinstance(item, Batch):
                    latents.add(item.rows, _tensor(item.images))
                    progress.advance(item.count)
                    continue
                skipped = sum(status != row_table.OK for status in item.status)
                part = _finish_part(plan, item, latents)
                part_writer.put(part)
                num_ok = len(part.rows.ok)
                counts["ok"] += num_ok
                counts["failed"] += len(part.rows.status) - num_ok
                progress.advance(skipped, **counts)
    except KeyboardInterrupt:
        progress.finish()
        progress.log(f"stopped after {part_writer.written} of {len(parts)} parts; the same command goes on")
        raise
    progress.finish()


def _tensor(buffer: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(buffer))


def _finish_part(plan: Plan, end: Any, latents: LatentBatches) -> Part:
    """Encode the captions of the rows whose pictures are fine, and put the part together."""
    rows = PartRows(
        first_row=end.first_row,
        keys=end.keys,
        captions=end.captions,
        status=end.status,
        detail=end.detail,
        width=end.width,
        height=end.height,
        crop=end.crop,
        hash=end.hash,
    )
    encoded, failed = latents.take()
    for row, reason in failed.items():
        rows.fail(row - rows.first_row, reason, "the picture's latents")
    places = rows.ok
    captions = encode_captions(plan.teacher, [rows.captions[place] for place in places])
    for index, reason in captions.failed.items():
        rows.fail(places[index], reason, "the caption's embedding")
    return Part(
        number=end.part,
        rows=rows,
        latents=[encoded[rows.first_row + place] for place in rows.ok],
        captions=captions.without_failed(),
    )


def _complete(plan: Plan, writer: StoreWriter, progress: Progress) -> None:
    """Wait for the other ranks' parts, join the rows, and record the run."""
    while len(records := committed(writer, plan)) < plan.sizes.num_parts:
        if plan.rank.world == 1:
            raise DdxError(
                f"{plan.store} lost {plan.sizes.num_parts - len(records)} parts while it was being made",
                hint="does something else write there? run the same command again",
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if (plan.store / row_table.FILE_NAME).is_file():
        progress.log(f"{plan.store} is complete")
        return
    ok, failed = summary_of(records)
    record = {
        "kind": "store",
        "teacher": plan.teacher.name,
        "config": to_dict(plan.config),
        "sources": list(plan.sources),
        "rows": plan.sizes.rows,
        "ok": ok,
        "failed": failed,
        "versions": versions(),
    }
    try:
        write_run(plan.store, record, finished=True)
        row_table.join(plan.store, range(plan.sizes.num_parts))
    except OSError as error:
        raise cannot_write(plan.store, error) from error
    bad = ", ".join(f"{count} {reason}" for reason, count in failed.items())
    progress.log(f"{ok} of {plan.sizes.rows} rows are in {plan.store}" + (f"; skipped: {bad}" if bad else ""))


def summary_of(records: Sequence[dict[str, Any]]) -> tuple[int, dict[str, int]]:
    """Rows that are fine, and failed ones by reason, over commit records."""
    failed: dict[str, int] = {}
    for record in records:
        for reason, count in record["failed"].items():
            failed[reason] = failed.get(reason, 0) + count
    return sum(record["ok"] for record in records), dict(sorted(failed.items()))
