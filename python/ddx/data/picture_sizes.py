"""What is known of the pictures behind a store's rows: their sizes, and what was cropped off. 24 bytes a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ddx.data.rows import tables

if TYPE_CHECKING:
    from torch import Tensor

    from ddx.data.store import Store


class PictureSizes:
    """Reads the sizes of all rows once, and gives those of a batch."""

    def __init__(self, store: Store) -> None:
        parts = [_of_table(table) for table in tables(store.path, range(store.num_parts), ("width", "height", "crop"))]
        self._sizes = np.concatenate(parts)

    def of(self, rows: Tensor, flipped: Tensor, latent_height: int, compression: int) -> Tensor:
        """Return float32 `[B, 4]`: height and width of the originals, then top and left of what was kept of them.

        Top and left count in pixels of the resized picture, as in Podell et al. 2023. A mirrored picture was mirrored
        before it was cropped. A row without a picture, which the teacher drew, has the size of its latents.
        """
        import torch

        height, width, top, left, kept_height, kept_width = (
            torch.from_numpy(column) for column in self._sizes[rows.numpy()].T
        )
        side = torch.full_like(height, latent_height * compression)
        left = torch.where(flipped, width - left - kept_width, left)
        scale = side / kept_height.clamp(min=1.0)
        real = torch.stack([height, width, (top * scale).round(), (left * scale).round()], dim=1)
        drawn = torch.stack([side, side, torch.zeros_like(side), torch.zeros_like(side)], dim=1)
        return torch.where((kept_height > 0)[:, None], real, drawn)


def _of_table(table: pa.Table) -> np.ndarray:
    """Height, width, top, left, kept height and kept width, float32 `[N, 6]`; zeros where there is no picture."""
    found = np.zeros((len(table), 6), np.float32)
    found[:, 0] = table["height"].fill_null(0).to_numpy()
    found[:, 1] = table["width"].fill_null(0).to_numpy()
    for place, crop in enumerate(table["crop"].to_pylist()):
        if crop:
            left, top, width, height = crop
            found[place, 2:] = top, left, height, width
    return found
