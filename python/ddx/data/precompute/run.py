"""Images and captions into a store, by this process. The same call again does what is missing."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.config import to_dict
from ddx.data import rows as row_table
from ddx.data.config import PrecomputeConfig
from ddx.data.core import core_errors
from ddx.data.fetched_rows import FOLDER
from ddx.data.precompute.append import find_place_of_pictures, require_store
from ddx.data.precompute.create import open_writer
from ddx.data.precompute.dedup import DUPLICATE, drop_duplicates
from ddx.data.precompute.encode_parts import encoded_parts
from ddx.data.precompute.fetched import fetch_parts, fetched, fetched_statuses, forget, forget_all
from ddx.data.precompute.keeping import keep_networks
from ddx.data.precompute.part_writer import PartWriter
from ddx.data.precompute.pictures import fetch
from ddx.data.precompute.plan import Plan, make_plan
from ddx.data.precompute.repair import discard_damaged
from ddx.data.precompute.retry import any_retries, retry_rows
from ddx.data.ranks import COMPLETE, already_written, claim, share_lock
from ddx.data.store import Store, tally
from ddx.errors import DdxError, cannot_write
from ddx.progress import NullProgress
from ddx.run_record import versions, write_run

if TYPE_CHECKING:
    from ddx._core import StoreWriter
    from ddx.data.precompute.keeping import EncodeKeeping
    from ddx.progress import Progress
    from ddx.workspace import Workspace

SECONDS_BETWEEN_LOOKS = 0.5


def precompute_here(
    config: PrecomputeConfig,
    sources: Sequence[str],
    *,
    workspace: Workspace | None,
    progress: Progress,
    keeping: EncodeKeeping | None,
) -> Path:
    """What `precompute` says, by this process and the ranks beside it."""
    plan = make_plan(config, sources, workspace)
    if not plan.rank.speaks:
        progress = NullProgress()
    progress.log(plan.reads)
    for line in plan.input.left_out:
        progress.log(line)
    if config.stage == "fetch":
        plan = find_place_of_pictures(plan)
        with _writes_alone(plan) as mine:
            for _ in fetch_parts(plan, plan.share(plan.rank.rank) if mine else [], progress):
                pass
        refuse_none(plan, fetched_statuses(plan))
        return plan.store
    require_store(plan)
    with _writes_alone(plan) as mine:
        plan, writer = open_store(plan, keeping, progress)
        finish_replacements(writer)
        if mine and config.verify:
            discard_damaged(plan, writer, progress)
        if mine:
            _run_parts(plan, writer, plan.share(plan.rank.rank), progress)
    while len(committed(writer, plan)) < plan.sizes.num_parts:
        _help(plan, writer, progress)
    if config.retry:
        retry_rows(plan, writer, progress)
    _complete(plan, progress)
    refuse_none(plan, tally(committed(writer, plan)))
    return plan.store


def open_store(plan: Plan, keeping: EncodeKeeping | None, progress: Progress) -> tuple[Plan, StoreWriter]:
    """Make the plan's store or open it, with the teacher's networks where `keeping` has them."""
    if keeping is not None:
        plan = keep_networks(plan, keeping)
    plan, writer = open_writer(plan)
    if plan.sizes.text_scale != 1.0:
        progress.log(
            f"the text embeddings of {plan.teacher.name} are larger than float16 holds: the store has them divided "
            f"by {plan.sizes.text_scale:g}"
        )
    return plan, writer


def finish_replacements(writer: StoreWriter) -> None:
    """Put new parts in the place of their old ones where an earlier process was stopped at that."""
    with core_errors():
        writer.finish_replacements()


def refuse_none(plan: Plan, counts: tuple[int, Mapping[str, int]] | None) -> None:
    """Raise DdxError when rows that are all done failed, each of them; equal pictures in the store are no failure."""
    ok, failed = counts or (1, {})
    if ok or not failed.keys() - {DUPLICATE}:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(failed.items(), key=lambda item: -item[1]))
    again = (
        f"remove {plan.store / FOLDER} and fetch again"
        if plan.config.stage == "fetch"
        else "the same command with --retry all"
    )
    raise DdxError(
        f"no row of {', '.join(plan.sources)} could be used: {reasons}",
        hint=f"`ddx inspect {plan.store}` shows rows with their reasons; once these are gone, {again}",
    )


def committed(writer: StoreWriter, plan: Plan) -> list[dict[str, Any]]:
    """The commit records of the parts that are done, in order."""
    parts = plan.sizes.parts
    return [json.loads(record) for record in writer.committed(parts.start, parts.stop)]


@contextmanager
def _writes_alone(plan: Plan) -> Iterator[bool]:
    """Hold this rank's share of the parts; false when another rank has taken it over already."""
    with claim(plan.store, share_lock(plan.rank.rank)) as held:
        if not held and plan.rank.world == 1:
            raise already_written(plan.store)
        yield held


def _run_parts(plan: Plan, writer: StoreWriter, share: Sequence[int], progress: Progress) -> None:
    """Encode and write what is missing of a share. What is complete when this ends, however it ends, is on disk."""
    done = {int(record["part"]) for record in committed(writer, plan)}
    parts = [part for part in share if part not in done]
    if not parts:
        return
    if done:
        progress.log(f"{plan.store} has {len(done)} of {plan.sizes.num_parts} parts; going on with the rest")
    progress.start("precompute", sum(len(plan.sizes.part_range(part)) for part in parts), "rows")
    try:
        for _ in write_parts(plan, writer, parts, progress):
            pass
    except KeyboardInterrupt:
        progress.finish()
        written = len(committed(writer, plan)) - len(done)
        progress.log(f"stopped after {written} of {len(parts)} parts; the same command goes on")
        raise
    progress.finish()


def write_parts(plan: Plan, writer: StoreWriter, parts: Sequence[int], progress: Progress) -> Iterator[int]:
    """Encode and write these parts, and yield the number of each that is on disk, however long after its turn."""
    written = deque[int]()

    def then(number: int) -> None:
        forget(plan, number)
        written.append(number)

    with PartWriter(writer, plan.sizes, then=then) as part_writer:
        items = fetched(plan, parts) if plan.config.stage == "encode" else fetch(plan, plan.input, parts)
        for part in encoded_parts(plan, items, progress):
            part_writer.put(part)
            while written:
                yield written.popleft()
    yield from written


def _help(plan: Plan, writer: StoreWriter, progress: Progress) -> None:
    """Take over the share of a rank that is gone; wait a little if all are at work."""
    if plan.rank.world == 1:
        raise DdxError(
            f"{plan.store} lost parts while it was being made",
            hint="does something else write there? run the same command again",
        )
    for rank in range(plan.rank.world):
        with claim(plan.store, share_lock(rank)) as held:
            if held:
                _run_parts(plan, writer, plan.share(rank), progress)
    time.sleep(SECONDS_BETWEEN_LOOKS)


def _complete(plan: Plan, progress: Progress) -> None:
    """Join the rows and record the run, unless another rank has done so, or will when it has ended its retries."""
    with claim(plan.store, COMPLETE, wait=True):
        if any_retries(plan):
            return
        store = Store(plan.store)
        for segment in store.segments:
            if not segment.is_done(plan.store):
                progress.log(f"{plan.store} has these rows, and waits for those of {', '.join(segment.sources)}")
                return
        if row_table.is_joined(plan.store, store.num_parts):
            progress.log(f"{plan.store} is complete")
            return
        (plan.store / row_table.FILE_NAME).unlink(missing_ok=True)  # one from before --retry
        drop_duplicates(plan, store.segments, progress)
        ok, failed = tally(store.commits())
        if not ok:  # nothing can be learnt from it, so it does not count as complete
            return
        record = {
            "kind": "store",
            "teacher": plan.teacher.name,
            "config": to_dict(plan.config),
            "sources": store.sources,
            "rows": store.rows,
            "ok": ok,
            "failed": failed,
            "versions": versions(),
        }
        try:
            write_run(plan.store, record, finished=True)
            row_table.join(plan.store, range(store.num_parts))
            forget_all(plan)
        except OSError as error:
            raise cannot_write(plan.store, error) from error
    bad = ", ".join(f"{count} {reason}" for reason, count in failed.items())
    progress.log(f"{ok} of {store.rows} rows are in {plan.store}" + (f"; skipped: {bad}" if bad else ""))
    if cut := row_table.count_cut(plan.store, range(store.num_parts)):
        progress.log(
            f"{cut} captions are longer than {plan.teacher.name} reads: their ends are cut; `detail` in "
            f"{row_table.FILE_NAME} says how much"
        )
