"""`ddx merge`: the parts of complete stores become the parts of a new one; nothing is encoded and little is written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx._core import StoreWriter
from ddx.data.core import core_errors
from ddx.data.layout import Array
from ddx.data.merge_plan import first_parts, merged_attributes
from ddx.data.precompute.dedup import renumber_duplicates
from ddx.data.precompute.part_writer import raw
from ddx.data.ranks import COMPLETE, READERS, already_written, claim, share_lock
from ddx.data.rows import errors_path, is_joined, join, piece_path, read_rows
from ddx.data.segments import num_row_places, read_attributes, record_path, segments_of
from ddx.data.store import Store, tally
from ddx.errors import DdxError, UsageError, cannot_write
from ddx.progress import NullProgress
from ddx.run_record import versions, write_run

if TYPE_CHECKING:
    from ddx.progress import Progress

SHARD = re.compile(r"(?P<array>.+)/c\.\d+(?P<rest>(\.0)*)")
OFFSET = "text/offset"


def merge(stores: Sequence[str | Path], out: Path, *, progress: Progress | None = None) -> Path:
    """Make a store of the parts of others, in this order, and return its path; after a stop the same call goes on.

    Shards are hard-linked where the file system allows it, else copied; `stores` stay as they are. A row's number is
    that in its own store, moved by whole parts. Raises UsageError when the stores do not fit each other or `out` is
    something else, DdxError when one of them is not complete or the disk refuses.
    """
    progress = progress or NullProgress()
    sources = [Store(path) for path in stores]
    with ExitStack() as stack:
        for source in sources:
            if not stack.enter_context(claim(source.path, READERS, shared=True)):
                raise DdxError(f"{source.path} is being changed", hint="wait until `ddx precompute` has ended")
            source.require_complete()
        attributes = merged_attributes(sources, out)
        if not stack.enter_context(claim(out, share_lock(0))):
            raise already_written(out)
        _open(sources, attributes, out)
        try:
            _adopt(sources, out, progress)
            _complete(Store(out), [str(source.path) for source in sources], progress)
        except OSError as error:
            raise cannot_write(out, error) from error
    return out


def _open(sources: Sequence[Store], attributes: dict[str, Any], out: Path) -> None:
    """Create the store, unless a merge that was stopped has done so."""
    found = read_attributes(out)
    if found is None:
        rows = num_row_places(segments_of(attributes), int(attributes["part_rows"]))
        with core_errors():
            StoreWriter.create_like(
                out, sources[0].path, rows, attributes["num_parts"], json.dumps({"ddx": attributes})
            )
    elif segments_of(found) != segments_of(attributes) or found["fingerprint"] != attributes["fingerprint"]:
        raise UsageError(
            f"{out} exists and is not the merge of these stores in this order",
            hint="give another place with --out; nothing was deleted",
        )


def _adopt(sources: Sequence[Store], out: Path, progress: Progress) -> None:
    """Write what is missing of the merged store's parts."""
    progress.start("merge", sum(source.num_parts for source in sources), "parts")
    for source, shift in zip(sources, first_parts(sources), strict=True):
        for segment in source.segments:
            with core_errors():
                writer = StoreWriter.open(out, segment.digest)
                done = writer.committed(segment.parts.start + shift, segment.parts.stop + shift)
            numbers = {int(json.loads(record)["part"]) - shift for record in done}
            for part in segment.parts:
                if part not in numbers:
                    _adopt_part(writer, source, part, shift)
                progress.advance()
    progress.finish()


def _adopt_part(writer: StoreWriter, source: Store, part: int, shift: int) -> None:
    record = json.loads(record_path(source.path, part).read_text())
    part_rows = int(source.attributes["part_rows"])
    rows = read_rows(source.path / piece_path(part))
    rows.first_row += shift * part_rows
    renumber_duplicates(rows, shift * part_rows)
    links = {}
    for name, num_bytes in record["files"].items():
        path, shard = source.path / name, SHARD.fullmatch(name)
        if path.stat().st_size != num_bytes:
            raise DdxError(f"{path} has not the size that it was written with", hint="`ddx inspect STORE --verify`")
        if shard and shard["array"] != OFFSET:
            links[f"{shard['array']}/c.{part + shift}{shard['rest']}"] = path
    with core_errors():
        writer.write_part(
            part=part + shift,
            first_row=rows.first_row,
            rows=record["rows"],
            ok=record["ok"],
            failed=record["failed"],
            shards={OFFSET: (None, raw(_offsets(source, part, shift)))},
            files={piece_path(part + shift): rows.parquet(), errors_path(part + shift): rows.errors()},
            links=links,
        )


def _offsets(source: Store, part: int, shift: int) -> Array:
    """Where the captions of a part start in the merged `text/tokens`: int64 `[part_rows]` or `[part_rows, K]`."""
    import zarr

    part_rows, part_tokens = (int(source.attributes[name]) for name in ("part_rows", "part_tokens"))
    found = np.asarray(
        zarr.open_array(str(source.path), path=OFFSET, mode="r")[part * part_rows : (part + 1) * part_rows]
    )
    offsets = np.full((part_rows, *found.shape[1:]), -1, np.int64)
    offsets[: len(found)] = np.where(found >= 0, found + shift * part_tokens, -1)
    return offsets


def _complete(store: Store, merged: list[str], progress: Progress) -> None:
    with claim(store.path, COMPLETE, wait=True):
        if is_joined(store.path, store.num_parts):
            progress.log(f"{store.path} is complete")
            return
        ok, failed = tally(store.commits())
        record = {
            "kind": "store",
            "teacher": store.teacher,
            "merged": merged,
            "sources": store.sources,
            "rows": store.rows,
            "ok": ok,
            "failed": failed,
            "versions": versions(),
        }
        write_run(store.path, record, finished=True)
        join(store.path, range(store.num_parts))
    progress.log(f"{ok} of {store.rows} rows are in {store.path}")
