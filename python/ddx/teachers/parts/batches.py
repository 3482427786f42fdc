"""Texts in batches of one shape, so that an embedding does not depend, to its last bits, on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")
ROWS = 8
LENGTH_STEP = 32  # attention over rows of other lengths would round differently


def in_batches(texts: Sequence[str], encode: Callable[[list[str]], Sequence[Row]]) -> list[Row]:
    """Return what `encode` makes of each text; it is called with :data:`ROWS` of them, the last one repeated."""
    rows: list[Row] = []
    for start in range(0, len(texts), ROWS):
        chunk = list(texts[start : start + ROWS])
        rows += list(encode(chunk + [chunk[-1]] * (ROWS - len(chunk))))[: len(chunk)]
    return rows


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
