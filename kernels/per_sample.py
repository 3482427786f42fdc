"""A batch as rows, one a sample: what the losses and sums over samples share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def check_samples(**tensors: Tensor) -> None:
    """Raise ValueError, with the names, unless all are `[B, ...]` of one shape and not empty."""
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    first = next(iter(tensors.values()))
    if len(shapes) > 1 or first.ndim < 2 or first.numel() == 0:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"these must be [B, ...], equal and not empty; got {given}")


def check_per_sample(batch: int, **tensors: Tensor | None) -> None:
    """Raise ValueError, with the name, unless each is None or `[batch]`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != (batch,):
            raise ValueError(f"{name} must be [{batch}], got {tuple(tensor.shape)}")


def as_rows(x: Tensor) -> Tensor:
    """x as `[B, n]` with stride 1 along n: a view wherever a sample is contiguous, half of a split one too."""
    rows = x.reshape(len(x), -1)
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """`[B]` as `[B, 1, ...]`, to meet `like`."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))


@triton.jit  # type: ignore[untyped-decorator]
def row_total(partial_ptr, sample, num_blocks, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of a sample's partial sums `[B, num_blocks]`, always added in the same order."""
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(0, num_blocks, WIDTH):
        index = start + tl.arange(0, WIDTH)
        total += tl.load(partial_ptr + sample * num_blocks + index, mask=index < num_blocks, other=0.0)
    return tl.sum(total, axis=0)
