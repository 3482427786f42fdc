"""What is known of the pictures behind a store's rows: their sizes, and what was cropped off. 24 bytes a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddx.data.rows import tables

if TYPE_CHECKING:
    from torch import Tensor

    from ddx.data.store import Store


class PictureSizes:
    """Reads the sizes of all rows once, and gives those of a batch."""

    def __init__(self, store: Store) -> None:
        parts = [_of_table(table) for table in tables(store.path, range(store.num_parts), ("width", "height", "crop"))]
        self._sizes = np.concatenate(parts)

    def of(self, rows: Tensor, flipped: Tensor, size: tuple[int, int]) -> Tensor:
        """Return float32 `[B, 4]`: height and width of the originals, then top and left of what was kept of them.

        Top and left count in pixels of the resized picture, as in Podell et al. 2023. A mirrored picture was mirrored
        before it was cropped. A row without a picture, which the teacher drew, has `size`, the (height, width) in the
        store.
        """
        import torch

        height, width, top, left, kept_height, kept_width = (
            torch.from_numpy(column) for column in self._sizes[rows.numpy()].T
        )
        left = torch.where(flipped, width - left - kept_width, left)
        scale = size[0] / kept_height.clamp(min=1.0)
        real = torch.stack([height, width, (top * scale).round(), (left * scale).round()], dim=1)
        drawn = torch.tensor([*map(float, size), 0.0, 0.0])
        return torch.where((kept_height > 0)[:, None], real, drawn)


def _of_table(table: pa.Table) -> np.ndarray:
    """Height, width, top, left, kept height and kept width, float32 `[N, 6]`; zeros where there is no picture."""
    found = np.zeros((len(table), 6), np.float32)
    found[:, 0] = table["height"].fill_null(0).to_numpy()
    found[:, 1] = table["width"].fill_null(0).to_numpy()
    for column, place in enumerate((1, 0, 3, 2), start=2):  # a crop is left, top, width, height
        found[:, column] = pc.list_element(table["crop"], place).fill_null(0.0).to_numpy()
    return found
