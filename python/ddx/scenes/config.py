"""The settings of `ddx scenes`."""

from __future__ import annotations

from dataclasses import dataclass

from ddx.config import option


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Write captioned pictures of scenes: any number of rows, a function of the seed."""

    rows: int = option(4096, "pictures to write")
    seed: int = option(0, "seed of the captions and of everything they leave open")
    split: str = option("train", "set of word combinations; the sets share no caption", choices=("train", "held-out"))
