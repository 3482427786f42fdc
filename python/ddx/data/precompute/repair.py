"""`ddx precompute --verify`: what is damaged no longer counts, and is made anew like what never was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddx.data.core import core_errors
from ddx.data.precompute.create import whole_arrays
from ddx.data.precompute.part_writer import raw
from ddx.data.precompute.plan import Plan
from ddx.data.precompute.reopen import reopened
from ddx.data.segments import record_path
from ddx.data.store import Store
from ddx.data.verify import Verified, has_record, verify_parts, verify_rest
from ddx.run_record import sync

if TYPE_CHECKING:
    from ddx._core import StoreWriter
    from ddx.progress import Progress


def discard_damaged(plan: Plan, writer: StoreWriter, progress: Progress) -> None:
    """Verify this rank's parts, the first rank the rest as well, and take away the records of those that are damaged.

    The arrays of one shard are encoded anew at once. Nothing but records and rows.parquet is removed. Raises DdxError
    while a training reads a store that is damaged.
    """
    parts = [part for part in plan.share(plan.rank.rank) if has_record(plan.store, part)]
    found = verify_parts(plan.store, parts, progress)
    rest = Verified()
    if plan.rank.is_first:
        rest = verify_rest(plan.store, range(Store(plan.store).num_parts), found)
    damaged = found.damaged + rest.damaged
    if not damaged:
        progress.log(f"{plan.store}: {(found.num_bytes + rest.num_bytes) / 1e6:,.1f} MB verified, nothing is damaged")
        return
    for damage in damaged:
        progress.log(f"{damage.file} {damage.reason}")
    with reopened(plan.store, "making damaged parts anew"):
        bad = {damage.part for damage in damaged}
        for part in (number for number in plan.sizes.parts if number in bad):
            record = record_path(plan.store, part)
            record.unlink(missing_ok=True)
            sync(record.parent)
        if rest.damaged:
            _restore(plan, writer, {damage.file.rpartition("/")[0] for damage in rest.damaged if damage.part is None})


def _restore(plan: Plan, writer: StoreWriter, folders: set[str]) -> None:
    """Write the arrays of one shard that lie in `folders` anew, and every node's metadata as the root has it."""
    of_text = any(folder.startswith("text/") for folder in folders)
    arrays = whole_arrays(plan, plan.sizes.text_scale)[1] if of_text else {}
    with core_errors():
        writer.restore({name: raw(array) for name, array in arrays.items() if name in folders})
