"""The captions of a store's rows in words, for losses that need them beside the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from ddx.data.rows import OK, tables
from ddx.errors import DdxError

if TYPE_CHECKING:
    from torch import Tensor

    from ddx.data.store import Store


class Captions:
    """Reads the captions of all rows once, and gives those of a batch: some 60 bytes a row.

    DdxError for a store whose captions a batch cannot know.
    """

    def __init__(self, store: Store) -> None:
        table = pa.concat_tables(tables(store.path, range(store.num_parts), ("caption", "captions", "status")))
        self._captions, used = table["caption"], pc.equal(table["status"], OK)
        if pc.any(pc.and_(used, pc.greater(pc.list_value_length(table["captions"]), 1))).as_py():
            raise DdxError(
                f"{store.path} has several captions a row, and a batch does not tell which of them it drew",
                hint="precompute another store with one --caption-column and --max-captions 1",
            )
        lost = pc.sum(pc.and_(used, pc.equal(pc.utf8_trim_whitespace(pc.fill_null(self._captions, "")), ""))).as_py()
        if lost:
            raise DdxError(
                f"{lost} rows of {store.path} have an embedding and no caption in words",
                hint="precompute the store again from its sources, with their captions",
            )

    def of(self, rows: Tensor) -> list[str]:
        """Return the captions of these input rows."""
        found: list[str] = self._captions.take(pa.array(rows.numpy())).to_pylist()
        return found
