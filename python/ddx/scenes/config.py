"""The settings of `ddx scenes`."""

from __future__ import annotations

from dataclasses import dataclass

from ddx.config import option


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Write captioned pictures of scenes: any number of rows, a function of the seed."""

    rows: int = option(4096, "pictures to write")
    seed: int = option(0, "seed of the captions and of all that they leave free")
    split: str = option("train", "combinations of words to draw; no caption is in both", choices=("train", "held-out"))
