"""The teacher's encoders over one part: uint8 batches and captions in, the arrays of the part's shards out.

Every batch has the shape it would have in any other run, so a row's bytes do not depend on what surrounded it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddx.data.float8 import MAX_ERROR, float8_error, to_float8
from ddx.data.layout import Array, round_up

if TYPE_CHECKING:
    from ddx.data.buckets import Bucket
    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition

NON_FINITE = "non_finite"
OUT_OF_RANGE = "float16_range"
INEXACT = "float8_error"
FLOAT16_MAX = 65504.0
HEADROOM = 4.0  # by how much a caption may exceed the largest of the validation prompts
CAPTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Text:
    """An encoded caption: float16 tokens `[L, D]`, and the pooled embedding `[K]` of families that have one.

    The tokens are divided by the store's `text_scale`. In eight bits they are uint8 codes, and `scale` what these are
    multiplied with.
    """

    tokens: Array
    pooled: Array | None
    scale: float = 1.0


@dataclass(frozen=True)
class Captions:
    """Ragged tokens in whole chunks, `[T, D]` as in `Text`, and of each caption its first token and its length."""

    tokens: Array
    offset: Array
    length: Array
    scale: Array
    pooled: Array | None


class LatentBatches:
    """Encodes batches and gives their latents back one batch later, so that the device never waits for the copy.

    `flip`: the mirrored pictures as well. `posterior`: "mode", "sample" (drawn by the row's number) or "params".
    """

    def __init__(self, teacher: Teacher, *, flip: bool = False, posterior: str = "mode") -> None:
        self.teacher, self.flip, self.posterior = teacher, flip, posterior
        self.latents: dict[int, dict[str, Array]] = {}
        self.failed: dict[int, str] = {}
        self._pending: deque[tuple[list[int], dict[str, Tensor], Tensor]] = deque()

    def add(self, rows: Sequence[int], images: Tensor, bucket: Bucket) -> None:
        """Encode uint8 `[B, H, W, 3]` of a bucket, of which the first `len(rows)` are the pictures of these rows."""
        kinds = self._encode(rows, images, "")
        if self.flip:
            kinds |= self._encode(rows, images.flip(2), "_flip")
        arrays = {bucket.array(kind): tensor for kind, tensor in kinds.items()}
        # NaN and infinity stay what they are
        largest = torch.stack([array.abs().flatten(1).amax(dim=1) for array in arrays.values()]).amax(dim=0)
        self._pending.append((list(rows), {name: array.half() for name, array in arrays.items()}, largest))
        while len(self._pending) > 1:
            self._collect()

    def _encode(self, rows: Sequence[int], images: Tensor, end: str) -> dict[str, Tensor]:
        """Those of `Sizes.latent_kinds` for one side of the mirror."""
        mean, logvar = self.teacher.encode_posterior(images)
        if logvar is None or self.posterior == "mode":
            return {"latents" + end: mean}
        if self.posterior == "params":
            return {"latents" + end: mean, "logvar" + end: logvar}
        noise = torch.zeros_like(mean)
        for place, row in enumerate(rows):
            generator = torch.Generator().manual_seed(2 * row + bool(end))
            noise[place] = torch.randn(mean.shape[1:], generator=generator)
        return {"latents" + end: mean + torch.exp(0.5 * logvar) * noise}

    def take(self) -> tuple[dict[int, dict[str, Array]], dict[int, str]]:
        """All since the last call: float16 `[C, h, w]` by row and array, and why the other rows failed."""
        while self._pending:
            self._collect()
        taken = self.latents, self.failed
        self.latents, self.failed = {}, {}
        return taken

    def _collect(self) -> None:
        rows, tensors, largest = self._pending.popleft()
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        for place, (row, value) in enumerate(zip(rows, largest.tolist(), strict=False)):
            reason = unfit(value)
            if reason is None:
                self.latents[row] = {name: array[place] for name, array in arrays.items()}
            else:
                self.failed[row] = reason


def unfit(largest: float) -> str | None:
    """Why values up to this magnitude cannot be stored as float16, or None."""
    if not np.isfinite(largest):
        return NON_FINITE
    return OUT_OF_RANGE if largest > FLOAT16_MAX else None


def needed_scale(conditions: Sequence[Condition]) -> float:
    """The power of two by which tokens are divided so that float16 holds them, with some room; 1 of most teachers.

    The states of a language model before its last norm have a few channels that are thousands of times as large as the
    others, and in every text. Divided, the others keep their 11 bits down to 6e-5 of the scale.
    """
    largest = max(float(condition.tokens[condition.mask].abs().max()) for condition in conditions)
    if not np.isfinite(largest):
        return 1.0
    return float(2.0 ** np.ceil(max(0.0, np.log2(max(1.0, largest) * HEADROOM / FLOAT16_MAX))))


def encode_captions(
    teacher: Teacher,
    captions: Sequence[str],
    *,
    float8: bool = False,
    text_scale: float = 1.0,
    at_once: int = CAPTIONS_AT_ONCE,
) -> list[Text | str]:
    """Encode captions; of one whose embedding cannot be stored, the reason.

    at_once: captions whose embeddings are on the device together. The embeddings do not depend on it.
    """
    texts: list[Text | str] = []
    for start in range(0, len(captions), at_once):
        conditions = teacher.encode_text(captions[start : start + at_once])
        texts += [as_text(condition.to("cpu", torch.float32), text_scale) for condition in conditions]
    return [in_float8(text) if float8 and isinstance(text, Text) else text for text in texts]


def as_text(condition: Condition, text_scale: float = 1.0) -> Text | str:
    """A one-row condition as it is stored, or the reason why it cannot be."""
    tokens = condition.tokens[0][condition.mask[0]].float().numpy() / np.float32(text_scale)
    largest = float(np.abs(tokens).max()) if len(tokens) else np.nan
    pooled = None if condition.pooled is None else condition.pooled[0].float().numpy()
    if pooled is not None:
        largest = max(largest, float(np.abs(pooled).max()))
    reason = unfit(largest)
    return reason or Text(tokens.astype(np.float16), None if pooled is None else pooled.astype(np.float16))


def in_float8(text: Text) -> Text | str:
    """A caption in eight bits a value, or why it cannot be: it would point another way."""
    codes, scale = to_float8(text.tokens)
    if float8_error(text.tokens, codes, scale) > MAX_ERROR:
        return INEXACT
    return Text(codes, text.pooled, scale)


def pack(texts: Sequence[Text]) -> Captions:
    """Put captions one after another, each starting on a chunk boundary."""
    length = np.array([len(text.tokens) for text in texts], np.int32)
    end = np.cumsum([round_up(int(num)) for num in length], dtype=np.int64)
    offset = np.concatenate([np.zeros(1, np.int64), end[:-1]]) if len(texts) else np.zeros(0, np.int64)
    shape, dtype = ((int(end[-1]), texts[0].tokens.shape[1]), texts[0].tokens.dtype) if texts else ((0, 0), np.float16)
    tokens = np.zeros(shape, dtype)
    for start, text in zip(offset, texts, strict=True):
        tokens[start : start + len(text.tokens)] = text.tokens
    pooled = [text.pooled for text in texts if text.pooled is not None]
    scale = np.array([text.scale for text in texts], np.float32)
    return Captions(tokens, offset, length, scale, np.stack(pooled) if pooled else None)
