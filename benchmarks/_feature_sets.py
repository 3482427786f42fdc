"""Made features whose metrics are compared: the same bytes wherever they are made, from numpy's frozen generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureSet:
    """reference float32 `[N, D]`, drawn float32 `[M, D]`, logits float32 `[M, 20]`."""

    name: str
    reference: NDArray[np.float32]
    drawn: NDArray[np.float32]
    logits: NDArray[np.float32]


def feature_sets() -> list[FeatureSet]:
    """Return sets of several kinds, sizes and widths, some with fewer rows than dimensions."""
    return [
        _make("equal", 0, rows=(400, 400), width=24),
        _make("shifted", 1, rows=(400, 400), width=24, shift=0.7),
        _make("narrow", 2, rows=(500, 300), width=16, scale=0.5),
        _make("wide", 3, rows=(300, 500), width=16, scale=2.0),
        _make("few-rows", 4, rows=(60, 50), width=96, shift=0.3),
        _make("positive", 5, rows=(350, 350), width=48, positive=True),  # as after a ReLU, many of them near zero
        _make("far", 6, rows=(200, 200), width=12, shift=30.0),
        _make("dropped-mode", 7, rows=(400, 400), width=8, drop=True),
    ]


def _make(
    name: str,
    seed: int,
    *,
    rows: tuple[int, int],
    width: int,
    shift: float = 0.0,
    scale: float = 1.0,
    positive: bool = False,
    drop: bool = False,
) -> FeatureSet:
    random = np.random.RandomState(seed)
    mixing = random.standard_normal((width, width)) / np.sqrt(width)
    reference = random.standard_normal((rows[0], width)) @ mixing
    drawn = random.standard_normal((rows[1], width)) * scale @ mixing + shift / np.sqrt(width)
    if drop:  # half of the reference is elsewhere, where nothing is drawn
        reference[: rows[0] // 2] += 10.0
    if positive:
        reference, drawn = np.maximum(reference, 0.0), np.maximum(0.9 * drawn + 0.1, 0.0)
    logits = 2.0 * random.standard_normal((rows[1], 20))
    return FeatureSet(name, *(values.astype(np.float32) for values in (reference, drawn, logits)))
