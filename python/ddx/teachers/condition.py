"""What a network is conditioned on: text embeddings with the mask of the real tokens."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddx.device import send


@dataclass(frozen=True)
class Condition:
    """A batch of text conditions, padded to one length.

    tokens: ``[B, L, D]`` float; mask: ``[B, L]`` bool, true on real tokens, which come first; pooled: ``[B, P]``
    or None for families without a pooled embedding. sizes: ``[B, 4]``, the original picture's height and width, and the
    top and left of what was kept of it, in pixels; None is the picture's own size, uncropped. counts: each row's number
    of real tokens where the host knows it, see :meth:`row_lengths`.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.mask.shape != self.tokens.shape[:2] or self.mask.dtype != torch.bool:
            raise ValueError(
                f"a condition is tokens [B, L, D] and a bool mask [B, L]; got {tuple(self.tokens.shape)} and "
                f"{self.mask.dtype} {tuple(self.mask.shape)}"
            )
        if self.pooled is not None and (self.pooled.ndim != 2 or len(self.pooled) != len(self.tokens)):
            raise ValueError(f"pooled must be [{len(self.tokens)}, P]; got {tuple(self.pooled.shape)}")

    def __len__(self) -> int:
        """The number of rows."""
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """The number of real tokens of each row, int64 ``[B]``."""
        return self.mask.sum(dim=1)

    def row_lengths(self) -> tuple[int, ...]:
        """The number of real tokens of each row; the host does not wait for a device that this was sent to."""
        return tuple(self.lengths.tolist()) if self.counts is None else self.counts

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """The same condition on another device, its embeddings in another dtype; None keeps.

        Embeddings are copied as they are and converted where they arrive, and the host does not wait for either.
        """

        def moved(value: Tensor) -> Tensor:
            return value if device is None else send(value, device)

        pooled = None if self.pooled is None else moved(self.pooled).to(dtype=dtype)
        sizes = None if self.sizes is None else moved(self.sizes)
        counts = self.row_lengths() if self.mask.device.type == "cpu" else self.counts
        return Condition(moved(self.tokens).to(dtype=dtype), moved(self.mask), pooled, sizes, counts)

    def expand(self, num_rows: int) -> Condition:
        """One row seen as ``num_rows`` equal ones (no copy); a batch of that size is returned as it is."""
        if len(self) == num_rows:
            return self
        if len(self) != 1:
            raise ValueError(f"only a condition of one row expands; this one has {len(self)}, asked for {num_rows}")
        pooled, sizes = (None if it is None else it.expand(num_rows, -1) for it in (self.pooled, self.sizes))
        counts = None if self.counts is None else self.counts * num_rows
        return Condition(self.tokens.expand(num_rows, -1, -1), self.mask.expand(num_rows, -1), pooled, sizes, counts)

    def index(self, rows: int | slice | Sequence[int] | Tensor) -> Condition:
        """The chosen rows as a batch (an int gives a batch of one)."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1 or None)
        elif not isinstance(rows, slice | Tensor):
            rows = torch.as_tensor(list(rows), dtype=torch.long, device=self.tokens.device)
        pooled, sizes = (None if it is None else it[rows] for it in (self.pooled, self.sizes))
        counts = self.counts[rows] if self.counts is not None and isinstance(rows, slice) else None
        return Condition(self.tokens[rows], self.mask[rows], pooled, sizes, counts)

    def with_sizes(self, sizes: Tensor | None) -> Condition:
        """The same texts for pictures of other sizes."""
        return dataclasses.replace(self, sizes=sizes)

    def pad(self, length: int) -> Condition:
        """Padded with zeros and a false mask to ``length`` tokens; never cut."""
        extra = length - self.tokens.shape[1]
        if extra < 0:
            raise ValueError(f"cannot pad {self.tokens.shape[1]} tokens to {length}")
        if extra == 0:
            return self
        tokens = torch.nn.functional.pad(self.tokens, (0, 0, 0, extra))
        return dataclasses.replace(self, tokens=tokens, mask=torch.nn.functional.pad(self.mask, (0, extra)))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The rows of all conditions as one batch, padded to the longest."""
        if not conditions:
            raise ValueError("cannot join zero conditions")
        length = max(condition.tokens.shape[1] for condition in conditions)
        padded = [condition.pad(length) for condition in conditions]
        pooled = [condition.pooled for condition in padded if condition.pooled is not None]
        sizes = [condition.sizes for condition in padded if condition.sizes is not None]
        if any(found and len(found) != len(padded) for found in (pooled, sizes)):
            raise ValueError("cannot join conditions with and without a pooled embedding, or sizes")
        counts = [condition.counts for condition in padded if condition.counts is not None]
        return Condition(
            torch.cat([condition.tokens for condition in padded]),
            torch.cat([condition.mask for condition in padded]),
            torch.cat(pooled) if pooled else None,
            torch.cat(sizes) if sizes else None,
            tuple(itertools.chain(*counts)) if len(counts) == len(padded) else None,
        )
