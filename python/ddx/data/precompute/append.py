"""Where a precompute's parts are in a store that exists, and `--append`: room for more behind them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx._core import StoreWriter
from ddx.data.core import core_errors
from ddx.data.fingerprint import refuse_mismatch
from ddx.data.precompute.plan import ENCODING, Plan
from ddx.data.precompute.reopen import reopened
from ddx.data.segments import Segment, num_row_places, of_the_store, read_attributes, segments_of, with_segments
from ddx.errors import DdxError, UsageError

SECONDS_BETWEEN_LOOKS = 0.2


def find_place(plan: Plan, attributes: Mapping[str, Any] | None) -> Plan:
    """The plan at its place in the store, if there is one: the segment of its settings, or with `append` behind the
    last.

    Raises UsageError naming the first key that does not fit. Nothing is written.
    """
    if attributes is None:
        if plan.config.append:
            raise _no_store(plan)
        return plan
    refuse_mismatch(plan.store, attributes.get("fingerprint", {}), plan.fingerprint)
    segments = segments_of(attributes)
    for segment in segments:
        placed = _place(plan, segment.first_part)
        if placed.settings == segment.settings:
            return placed
    placed = _place(plan, segments[-1].parts.stop)
    found, wanted = of_the_store(segments[0].settings), of_the_store(placed.settings)
    if not plan.config.append:
        others = found == wanted and plan.settings["input"] not in (segment.settings["input"] for segment in segments)
        if others and (before := source_before(plan, segments)):
            raise UsageError(
                f"{plan.store} holds {before.rows} rows of {', '.join(plan.sources)}, which has changed since; "
                f"this run has {plan.sizes.rows}",
                hint="--append --dedup content adds its rows but those whose picture is there already; or put the new "
                "rows into a file of their own, and add that one with --append",
            )
        hint = "add its rows with --append, or give --out for a second store" if others else None
        refuse_mismatch(plan.store, segments[0].settings, plan.settings, hint=hint)
        return plan
    captions = {"captions of a row": _num_captions(plan.store)}
    refuse_mismatch(plan.store, {**found, **captions}, {**wanted, "captions of a row": plan.sizes.num_captions})
    return placed


def source_before(plan: Plan, segments: Sequence[Segment]) -> Segment | None:
    """The last segment of one of the plan's sources as it was then."""
    names = {_place_name(source) for source in plan.sources}
    return next((it for it in reversed(segments) if names & set(map(_place_name, it.sources))), None)


def _place_name(source: str) -> str:
    return source if "://" in source else str(Path(source).absolute())


def find_place_of_pictures(plan: Plan) -> Plan:
    """The same for `--stage fetch`, which may run where encoders would compute in another type, or before the store."""
    attributes = read_attributes(plan.store)
    for segment in segments_of(attributes) if attributes else []:
        placed = _place(plan, segment.first_part)
        if _of_pictures(placed.settings) == _of_pictures(segment.settings):
            return placed
    return plan


def make_room(plan: Plan) -> tuple[dict[str, Any], Plan]:
    """Let the store grow by the plan's segment, unless it has it; ranks but the first wait until it has.

    Returns the store's attributes, and the plan at its place. Raises UsageError naming the key in which the store
    differs, DdxError when another segment is not complete, or something reads the store.
    """
    attributes = _attributes(plan)
    placed = find_place(plan, attributes)
    while _is_new(placed, attributes) and not plan.rank.is_first:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        attributes = _attributes(plan)
        placed = find_place(plan, attributes)
    if not _is_new(placed, attributes):
        return attributes, placed
    with reopened(plan.store, "adding rows"):
        attributes = _attributes(plan)
        plan = find_place(plan, attributes)  # nobody else changes it now
        segments = segments_of(attributes)
        for segment in segments:
            if not segment.is_done(plan.store):
                raise DdxError(
                    f"{plan.store} has not all parts of {', '.join(segment.sources)} yet",
                    hint="run the command that adds them first; it goes on where it stopped",
                )
        segments.append(
            Segment(
                first_part=plan.sizes.first_part,
                num_parts=plan.sizes.num_parts,
                rows=plan.sizes.rows,
                sources=list(plan.sources),
                settings=plan.settings,
                digest=plan.digest,
            )
        )
        grown = with_segments(attributes, segments)
        rows = num_row_places(segments, plan.sizes.part_rows)
        with core_errors():
            StoreWriter.grow(plan.store, rows, grown["num_parts"], json.dumps({"ddx": grown}))
    return grown, plan


def _is_new(plan: Plan, attributes: Mapping[str, Any]) -> bool:
    return plan.sizes.first_part >= int(attributes["num_parts"])


def _place(plan: Plan, first_part: int) -> Plan:
    """The plan with its first part there."""
    return dataclasses.replace(plan, sizes=dataclasses.replace(plan.sizes, first_part=first_part))


def _num_captions(store: Path) -> int:
    shape = json.loads((store / "text" / "offset" / "zarr.json").read_text(encoding="utf-8"))["shape"]
    return int(shape[1]) if len(shape) > 1 else 1


def _of_pictures(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ENCODING}


def _attributes(plan: Plan) -> dict[str, Any]:
    attributes = read_attributes(plan.store)
    if attributes is None:
        raise _no_store(plan)
    return attributes


def require_store(plan: Plan) -> None:
    """Raise UsageError if rows are to be added to a store that is not there; before a lock makes its folder."""
    if plan.config.append:
        _attributes(plan)


def _no_store(plan: Plan) -> UsageError:
    return UsageError(
        f"there is no store at {plan.store} to append to", hint="leave --append away to make it, or check --out"
    )
