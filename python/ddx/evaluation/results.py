"""What an evaluation finds: the prompts that are scored, a row of its table while it is made, and the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddx.evaluation.drawing import Drawn


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The table, what it was measured with, and where the report is."""

    rows: list[dict[str, Any]]
    facts: dict[str, Any]
    student: Path | None
    report: Path | None = None
    page: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        paths = {"student": self.student, "report": self.report, "page": self.page}
        return {"rows": self.rows, **{key: str(path) if path else None for key, path in paths.items()}, **self.facts}


@dataclass(kw_only=True)
class ModelResult:
    """One row of the table while it is made: who draws, how, and what came out."""

    model: str
    steps: int
    guidance: float | None
    drawn: Drawn
    features: NDArray[np.float64]
    marks: Mapping[str, float | None] = field(default_factory=dict)  # of the scene checker, where it can mark


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The prompts that are scored, then those that are drawn again and again to measure diversity."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    diversity_prompts: tuple[str, ...]
    diversity_seeds: tuple[int, ...]
    scenes: bool
