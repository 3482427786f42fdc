"""Texts in batches of one shape, so that an embedding does not depend, to its last bits, on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ddx.teachers.condition import Condition

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

Row = TypeVar("Row")
Encoder = TypeVar("Encoder", bound="Teacher")
ROWS = 8
LENGTH_STEP = 32  # attention over rows of other lengths would round differently


def in_batches(texts: Sequence[str], encode: Callable[[list[str]], Sequence[Row]]) -> list[Row]:
    """Return what `encode` makes of each text; it is called with :data:`ROWS` of them, the last one repeated."""
    rows: list[Row] = []
    for start in range(0, len(texts), ROWS):
        chunk = list(texts[start : start + ROWS])
        rows += list(encode(chunk + [chunk[-1]] * (ROWS - len(chunk))))[: len(chunk)]
    return rows


def of_batches(
    encode: Callable[[Encoder, list[str]], list[Condition]],
) -> Callable[[Encoder, Sequence[str]], list[Condition]]:
    """The method :meth:`Teacher.encode_text`, of one that encodes :data:`ROWS` texts with networks of `text_dtype`."""

    @wraps(encode)
    @torch.no_grad()
    def encode_text(self: Encoder, prompts: Sequence[str]) -> list[Condition]:
        with self._products(self.text_dtype):
            return in_batches(prompts, lambda texts: encode(self, texts))

    return encode_text


def whole_rows(tokens: Tensor, pooled: Tensor | None = None) -> list[Condition]:
    """One condition of one row for each of ``[B, L, D]``, whose positions are all kept, and of ``[B, P]``."""
    real = torch.ones(1, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    vectors = [None] * len(tokens) if pooled is None else [vector[None].clone() for vector in pooled]
    return [Condition(row[None].clone(), real, vector) for row, vector in zip(tokens, vectors, strict=True)]


def by_length(
    ids: Sequence[list[int]], pad: int, encode: Callable[[Tensor, Tensor], Tensor], *, step: int | None = None
) -> list[Tensor]:
    """Return the states ``[length, D]`` of token rows, which `encode` computes in batches of one length each.

    It is given ids and the mask of the real ones, ``[ROWS, L]`` with L a multiple of `step`, None for
    :data:`LENGTH_STEP`, and returns ``[ROWS, L, D]``. For encoders that are causal: padding behind a text changes
    nothing in front of it, and short texts cost what they are long.
    """
    step = step or LENGTH_STEP
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(ids):
        groups.setdefault(-(-len(row) // step) * step, []).append(index)
    states: dict[int, Tensor] = {}
    for length, members in groups.items():
        for start in range(0, len(members), ROWS):
            chosen = members[start : start + ROWS]
            rows = [ids[index] for index in chosen + [chosen[-1]] * (ROWS - len(chosen))]
            tokens = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
            mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
            for index, state in zip(chosen, encode(tokens, mask), strict=False):
                states[index] = state[: len(ids[index])].clone()
    return [states[index] for index in range(len(ids))]
