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
    """Reads the captions of all rows once, and gives those of a batch: some 60 bytes a caption.

    DdxError for a store whose embeddings lack their captions in words.
    """

    def __init__(self, store: Store) -> None:
        table = pa.concat_tables(tables(store.path, range(store.num_parts), ("caption", "captions", "status")))
        self._captions, self._lists = table["caption"], table["captions"]
        used = pc.equal(table["status"], OK)
        lost = pc.sum(pc.and_(used, pc.equal(pc.utf8_trim_whitespace(pc.fill_null(self._captions, "")), ""))).as_py()
        if lost:
            raise DdxError(
                f"{lost} rows of {store.path} have an embedding and no caption in words",
                hint="precompute the store again from its sources, with their captions",
            )

    def of(self, rows: Tensor, numbers: Tensor | None = None) -> list[str]:
        """Return the captions of these input rows.

        rows: int64 `[B]`; numbers: int32 `[B]`, which of its captions each row drew, where rows have several.
        """
        places = pa.array(rows.numpy())
        found: list[str]
        if numbers is None:
            found = self._captions.take(places).to_pylist()
        else:
            lists = self._lists.take(places).to_pylist()
            found = [texts[number] for texts, number in zip(lists, numbers.tolist(), strict=True)]
        return found
