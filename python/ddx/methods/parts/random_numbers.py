"""Random numbers that belong to a sample, not to a process.

What row i of a batch draws depends on (seed, step, global index of the row) alone. So the same run on one rank or
on eight, in one micro-batch or in four, stopped and resumed or not, sees the same noise and the same times, and a
checkpoint has no generator state to save.

On a processor each row has a generator of torch. On a GPU the numbers are made where they are needed, by a counter
(`ddx.kernels.philox`): they are others, and follow from the same three alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ddx.device import send
from ddx.kernels import philox

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Return a 63-bit seed from a few integers; neighbouring inputs give unrelated seeds (splitmix64, Steele 2014)."""
    state = 0
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


class RandomNumbers:
    """The random numbers of the rows `indices` (of the global batch) at one step; each call draws fresh ones."""

    def __init__(
        self,
        seed: int,
        step: int,
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        by_counter: bool | None = None,
    ) -> None:
        """`by_counter` None: on every device but the CPU."""
        self.device = torch.device(device)
        self.by_counter = self.device.type != "cpu" if by_counter is None else by_counter
        self._seeds = [mix(seed, step, index) for index in indices]
        self.draws = 0  # by the counter so far: each has a stream of its own

    def __len__(self) -> int:
        return len(self._seeds)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32 `[B, *shape]`."""
        if self.by_counter:
            return philox.normal(self.keys, self._next(), shape)
        return send(torch.stack([torch.randn(shape, generator=g) for g in self._generators]), self.device)

    def uniform(self) -> Tensor:
        """Return one number in [0, 1) a row, float64 `[B]`."""
        return philox.uniform(self.keys, self._next()) if self.by_counter else send(self._uniform(), self.device)

    def pick(self, *shares: float) -> tuple[Tensor, ...]:
        """Return the rows of each part of a batch, int64: every row falls to a part with that probability.

        The last part takes what the shares leave. It is decided on the CPU, so how many rows a part has is known
        without waiting for the device.
        """
        edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)
        part = torch.searchsorted(edges, self._uniform(), right=True)
        return tuple(send((part == k).nonzero()[:, 0], self.device) for k in range(len(shares) + 1))

    @functools.cached_property
    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in self._seeds]

    @functools.cached_property
    def keys(self) -> Tensor:
        """The keys of the rows for the counter, int64 `[B]` on the device."""
        return send(torch.tensor(self._seeds, dtype=torch.int64), self.device)

    def _next(self) -> int:
        self.draws += 1
        return self.draws

    def _uniform(self) -> Tensor:
        return torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self._generators])


class KeyedNumbers(RandomNumbers):
    """Numbers by the counter alone, for keys that are on the device and may change there."""

    def __init__(self, keys: Tensor, draws: int = 0) -> None:
        """`draws`: how many calls came before."""
        super().__init__(0, 0, (), keys.device, by_counter=True)
        self.keys, self.draws = keys, draws

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, *shares: float) -> tuple[Tensor, ...]:
        """See :meth:`RandomNumbers.pick`. RuntimeError: how many rows a part has would be another number each time."""
        raise RuntimeError("a batch is parted on the host")
