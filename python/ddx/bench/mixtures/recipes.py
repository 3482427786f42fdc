"""How each method distils a mixture within about a minute on one core, and at which numbers of steps it must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddx.bench.mixtures.teacher import PROCESSES


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """settings: of the trainer and the method, over those of the bench; steps: the numbers of sampling steps that the
    gate is held at; processes: what it is run on; trained: whether the teacher is the fitted network and not the
    formula, because the method looks at its features.
    """

    settings: Mapping[str, Any]
    steps: tuple[int, ...] = (1, 2, 4)
    processes: tuple[str, ...] = tuple(PROCESSES)
    trained: bool = False


RECIPES: dict[str, Recipe] = {}
