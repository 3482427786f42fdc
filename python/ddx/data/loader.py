"""Random batches of a store for training, read ahead by the core's threads while Python computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ddx._core import BatchReader
from ddx.data.core import core_errors
from ddx.data.float8 import from_float8
from ddx.data.ranks import READERS, claim
from ddx.data.store import Store
from ddx.errors import DdxError
from ddx.teachers.condition import Condition


@dataclass(frozen=True)
class StoredBatch:
    """This rank's slice of a global batch.

    latents: unscaled, float16 `[B, C, h, w]`, all of one aspect bucket, of a store with means and variances drawn from
    them; condition: padded to the longest caption of the global batch, float16, or float32 of embeddings that exceed
    it; rows: int64 `[B]`, the input rows; flipped: bool `[B]`, whether a sample is the mirrored picture; captions:
    int32 `[B]`, which of its row's captions each sample drew, None in a store of one caption a row. On the CPU, in
    pinned memory where there is a GPU.
    """

    latents: Tensor
    condition: Condition
    rows: Tensor
    flipped: Tensor
    captions: Tensor | None = None


class Loader(IterableDataset[StoredBatch]):
    """An endless iterator over epochs without a seam.

    Its threads are the core's, so it needs no workers. A script that wants a PyTorch `DataLoader` gives it one as
    `DataLoader(loader, batch_size=None)`.

    The global batch at a position depends on the store, the seed and `batch_size` (over all ranks) alone; rank r of
    `world` gets its r-th slice. `position` counts global batches: a loader that starts at one continues exactly.
    """

    def __init__(
        self,
        store: Store | str | Path,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
        prefetch: int = 4,
        threads: int = 2,
        verify: bool = True,
    ) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self.store.require_complete()
        self._pin = torch.cuda.is_available()
        with ExitStack() as opening:
            # Rows may not be taken up again meanwhile: captions would change places.
            if not opening.enter_context(claim(self.store.path, READERS, shared=True)):
                raise DdxError(f"{self.store.path} is being changed", hint="wait until `ddx precompute` has ended")
            with core_errors():
                self._reader: BatchReader | None = BatchReader(
                    self.store.path,
                    batch_size=batch_size,
                    seed=seed % 2**64,
                    position=position,
                    rank=rank,
                    world=world,
                    prefetch=prefetch,
                    threads=threads,
                    verify=verify,
                )
            self._lock = opening.pop_all()
        self.num_rows = self._reader.num_rows
        self._position = position
        self._seed, self._batch_size, self._rank = seed, batch_size, rank

    def __iter__(self) -> Iterator[StoredBatch]:
        return self

    def __next__(self) -> StoredBatch:
        if self._reader is None:
            raise DdxError("the loader is closed")
        with core_errors():
            arrays = next(self._reader)
        latents = self._latents(arrays)
        self._position += 1
        tokens = _tensor(arrays["tokens"])
        if "scales" in arrays:
            tokens = from_float8(tokens, _tensor(arrays["scales"]))
        if self.store.text_scale != 1.0:
            tokens = self.store.text_scale * tokens.float()
        mask = torch.arange(tokens.shape[1]) < _tensor(arrays["lengths"])[:, None]
        pooled = self._pinned(_tensor(arrays["pooled"])) if "pooled" in arrays else None
        rows, flipped = self._pinned(_tensor(arrays["rows"])), torch.tensor(arrays["flipped"])
        condition = Condition(self._pinned(tokens), self._pinned(mask), pooled)
        captions = _tensor(arrays["captions"]) if "captions" in arrays else None
        return StoredBatch(self._pinned(latents), condition, rows, flipped, captions)

    def _latents(self, arrays: dict[str, Any]) -> Tensor:
        mean = _tensor(arrays["latents"])
        if "logvar" not in arrays:
            return mean
        # Noise of the whole batch, of which each rank takes its rows: what is drawn does not depend on the ranks.
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._position) % 2**63)
        noise = torch.randn(self._batch_size, *mean.shape[1:], generator=generator)
        noise = noise[self._rank * len(mean) : (self._rank + 1) * len(mean)]
        drawn = mean.float() + torch.exp(0.5 * _tensor(arrays["logvar"]).float()) * noise
        return drawn.half()

    @property
    def position(self) -> int:
        """Number of global batches given so far, counted from the start of training."""
        return self._position

    def close(self) -> None:
        """Stop the reading threads."""
        self._reader = None
        self._lock.close()

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._pin else tensor


def _tensor(buffer: Any) -> Tensor:
    return torch.from_numpy(np.asarray(buffer))
