"""Pictures that a teacher drew from captions: how, and from which noise, which need not be stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddx.teachers.samplers.names import OWN, SAMPLERS

if TYPE_CHECKING:
    from ddx.data.segments import Segment

SETTING = "synthetic"  # in a segment's settings; absent where its pictures are those of its rows


@dataclass(frozen=True)
class Synthetic:
    """How the rows of one segment were drawn: by the teacher, from noise that follows from seed and row."""

    steps: int
    guidance: float
    seed: int
    sampler: str = OWN
    variances: str | None = None  # of analytic-dpm: which ones
    network: str | None = None  # the teacher's, by `network_identity`; None in stores of before it was recorded

    def setting(self) -> dict[str, Any]:
        """Return it as the segment's settings have it; the own sampler is not named, as before there were others."""
        own = {"steps": self.steps, "guidance": self.guidance, "seed": self.seed}
        return {
            **own,
            **({} if self.sampler == OWN else {"sampler": self.sampler}),
            **({} if self.variances is None else {"variances": self.variances}),
            **({} if self.network is None else {"network": self.network}),
        }

    @property
    def makes_pairs(self) -> bool:
        """Whether a picture follows from its first noise, so that the two are a pair."""
        return SAMPLERS[self.sampler].deterministic

    def generator(self, row: int) -> torch.Generator:
        """Return the generator of the noise of a row, counted from the segment's first: so a merge changes nothing."""
        hashed = hashlib.blake2b(f"{self.seed}/{row}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(hashed, "big") >> 1)


def synthetic_of(settings: Mapping[str, Any]) -> Synthetic | None:
    """Return how the pictures of a segment with these settings were drawn; None for those of its rows."""
    found = settings.get(SETTING)
    return None if found is None else Synthetic(**found)


def noise_of(segments: Sequence[Segment], part_rows: int, row: int, shape: tuple[int, int, int]) -> Tensor:
    """Return the first unit noise, float32 `[C, h, w]`, that the picture of a row was drawn from.

    It is that of `Teacher.initial_noise`. ValueError for a row that no teacher drew.
    """
    segment = next(segment for segment in reversed(segments) if segment.first_part * part_rows <= row)
    how = synthetic_of(segment.settings)
    if how is None:
        raise ValueError(f"row {row} was not drawn by a teacher")
    return torch.randn((1, *shape), generator=how.generator(row - segment.first_part * part_rows))[0]
