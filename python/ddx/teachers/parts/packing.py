"""Latents as FLUX and Qwen-Image read them: two by two cells are one token, its channels ordered (c, dy, dx)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Return tokens ``[B, (h/2) (w/2), 4 C]``, row by row, of latents ``[B, C, h, w]``."""
    num, channels, height, width = latents.shape
    cells = latents.reshape(num, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(num, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the inverse of :func:`pack` for latents whose shape ends in ``(C, h, w)``."""
    channels, height, width = shape[-3:]
    cells = tokens.reshape(len(tokens), height // 2, width // 2, channels, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), channels, height, width)
