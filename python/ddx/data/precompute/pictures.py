"""Rows of the input as pictures of the size that a teacher wants: what stands between fetching and encoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx._core import Batch, Ingest, PartEnd
from ddx.data.core import core_errors
from ddx.data.layout import Array
from ddx.data.precompute.pace import Pace
from ddx.data.precompute.plan import INGEST, Plan
from ddx.data.rows import COLUMNS, PartRows

if TYPE_CHECKING:
    from ddx._core import Input


@dataclass(frozen=True)
class Pictures:
    """A batch of one shape: uint8 `[B, H, W, 3]`, zero behind the pictures of `rows`."""

    rows: list[int]
    images: Array
    stats: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """A part has no more pictures. `captions`: of each row one a column, empty where it is blank.

    `names`: what `Pictures.rows` calls the rows, where that is not their number in `rows`.
    """

    number: int
    rows: PartRows
    captions: list[list[str]]
    names: Sequence[int]


def fetch(
    plan: Plan, source: Input, parts: Sequence[int], *, numbers: Sequence[int] | None = None
) -> Iterator[Pictures | End]:
    """Fetch, decode and crop the rows of `parts` of the plan, in order.

    `numbers`: what the source's rows are called in the store, where `parts` are those of the source alone.
    """
    first_part, first_row = (plan.sizes.first_part, plan.sizes.first_row) if numbers is None else (0, 0)
    names = numbers or range(first_row, first_row + source.rows)
    settings = {name: getattr(plan.config, name) for name in INGEST}
    own = [part - first_part for part in parts]
    with core_errors():
        sizes = [(bucket.width, bucket.height) for bucket in plan.sizes.buckets]
        ingest = Ingest(source, sizes=sizes, part_rows=plan.sizes.part_rows, parts=own, **settings)
    with ingest:
        pace = Pace(ingest.stats)
        while True:
            with core_errors():
                item = pace.wait_for(lambda: next(ingest, None))
            if item is None:
                return
            if isinstance(item, Batch):
                yield Pictures([names[row] for row in item.rows], np.asarray(item.images), pace.look())
            else:
                rows = rows_of(item, plan.sizes.num_captions, first_row)
                named = names[item.first_row : item.first_row + item.num_rows]
                yield End(first_part + item.part, rows, item.captions, named)


def rows_of(end: PartEnd, num_captions: int, first_row: int) -> PartRows:
    """What the store keeps of the rows of a part; `first_row`: what the input's first row is called there."""
    given: dict[str, Any] = {
        "caption": [next(filter(None, captions), "") for captions in end.captions],
        "captions": [captions if num_captions > 1 else None for captions in end.captions],
    }
    columns = (given[name] if name in given else getattr(end, name) for name in COLUMNS)
    return PartRows(first_row + end.first_row, *columns)
