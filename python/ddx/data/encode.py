"""The teacher's encoders over one part: uint8 batches and captions in, the arrays of the part's shards out.

Every batch has the shape it would have in any other run, so a row's bytes do not depend on what surrounded it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddx.data.layout import TOKEN_CHUNK, round_up

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition

NON_FINITE = "non_finite"
OUT_OF_RANGE = "float16_range"
FLOAT16_MAX = 65504.0
CAPTIONS_AT_ONCE = 256

Array = np.ndarray[Any, Any]


@dataclass
class Captions:
    """Ragged tokens in whole chunks: float16 `[T, D]`, and of each caption its first token and its length."""

    tokens: Array
    offset: Array
    length: Array
    pooled: Array | None
    failed: dict[int, str] = field(default_factory=dict)

    def without_failed(self) -> Captions:
        """The captions that can be stored; the others have no tokens anyway."""
        keep = [index for index in range(len(self.length)) if index not in self.failed]
        pooled = None if self.pooled is None else self.pooled[keep]
        return Captions(self.tokens, self.offset[keep], self.length[keep], pooled)


class LatentBatches:
    """Encodes batches and gives their latents back one batch later, so that the device never waits for the copy."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.latents: dict[int, Array] = {}
        self.failed: dict[int, str] = {}
        self._pending: deque[tuple[list[int], Tensor, Tensor]] = deque()

    def add(self, rows: Sequence[int], images: Tensor) -> None:
        """Encode uint8 `[B, H, W, 3]`, of which the first `len(rows)` are the pictures of these rows."""
        latents = self.teacher.encode_images(images)
        largest = latents.abs().flatten(1).amax(dim=1)  # NaN and infinity stay what they are
        self._pending.append((list(rows), latents.half(), largest))
        while len(self._pending) > 1:
            self._collect()

    def take(self) -> tuple[dict[int, Array], dict[int, str]]:
        """All latents since the last call, float16 `[C, h, w]` by row, and why the others failed."""
        while self._pending:
            self._collect()
        taken = self.latents, self.failed
        self.latents, self.failed = {}, {}
        return taken

    def _collect(self) -> None:
        rows, latents, largest = self._pending.popleft()
        arrays = latents.cpu().numpy()
        for row, array, value in zip(rows, arrays, largest.tolist(), strict=False):
            reason = unfit(value)
            if reason is None:
                self.latents[row] = array
            else:
                self.failed[row] = reason


def unfit(largest: float) -> str | None:
    """Why values up to this magnitude cannot be stored as float16, or None."""
    if not np.isfinite(largest):
        return NON_FINITE
    return OUT_OF_RANGE if largest > FLOAT16_MAX else None


def encode_captions(teacher: Teacher, captions: Sequence[str]) -> Captions:
    """Encode captions; one whose embedding cannot be stored has length 0 and is in `failed`."""
    conditions: list[Condition] = []
    pieces = [captions[start : start + CAPTIONS_AT_ONCE] for start in range(0, len(captions), CAPTIONS_AT_ONCE)]
    for piece in pieces:
        conditions += [condition.to("cpu", torch.float32) for condition in teacher.encode_text(piece)]
    return pack(conditions)


def pack(conditions: Iterable[Condition]) -> Captions:
    """One-row conditions as ragged float16 tokens, each starting on a chunk boundary."""
    chosen, offsets, lengths, pooled, failed = [], [], [], [], {}
    start = 0
    for index, condition in enumerate(conditions):
        tokens = condition.tokens[0][condition.mask[0]].float().numpy()
        largest = float(np.abs(tokens).max()) if len(tokens) else np.nan
        if condition.pooled is not None:
            pooled.append(condition.pooled[0].float().numpy())
            largest = max(largest, float(np.abs(pooled[-1]).max()))
        reason = unfit(largest)
        if reason is not None:
            failed[index] = reason
            tokens = tokens[:0]
        chosen.append(tokens)
        offsets.append(start)
        lengths.append(len(tokens))
        start += round_up(len(tokens))
    width = chosen[0].shape[1] if chosen else 0
    packed = np.zeros((start, width), np.float16)
    for offset, tokens in zip(offsets, chosen, strict=True):
        packed[offset : offset + len(tokens)] = tokens
    return Captions(
        tokens=packed,
        offset=np.array(offsets, np.int64),
        length=np.array(lengths, np.int32),
        pooled=np.stack(pooled).astype(np.float16) if pooled else None,
        failed=failed,
    )


def overhead(lengths: Array) -> float | None:
    """Stored tokens for one true token: what starting on chunk boundaries costs."""
    stored = int((-(-lengths // TOKEN_CHUNK) * TOKEN_CHUNK).sum())
    return stored / int(lengths.sum()) if lengths.sum() else None
