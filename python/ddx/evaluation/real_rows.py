"""The rows of a comparison with real pictures: who drew, how, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.drawn import DrawnFolder
from ddx.evaluation.octaves import Octaves
from ddx.metrics.bootstrap import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The settings of some rows; `changed` says in what they differ from the others."""

    config: EvaluateConfig
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Row:
    """Who drew, how, and what came out; `error` where nothing did."""

    model: str
    kind: str
    steps: int | None
    guidance: float | None
    changed: Mapping[str, Any]
    drawn: DrawnFolder | None = None
    repeated: DrawnFolder | None = None  # several seeds of some prompts, for lpips
    prompts: tuple[str, ...] = ()
    first_seed: int = 0
    count: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    estimates: Mapping[str, Estimate | None] = field(default_factory=dict)
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    kept: NDArray[np.int64] | None = None
    octaves: Octaves | None = None
    error: str | None = None

    @property
    def title(self) -> str:
        """The row as people name it."""
        parts = [self.model]
        if self.steps is not None:
            parts.append(f"{self.steps} step{'s' if self.steps > 1 else ''}")
        if self.guidance is not None:
            parts.append(f"guidance {self.guidance:g}")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.changed.items())])

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "model": self.model,
            "kind": self.kind,
            "steps": self.steps,
            "guidance": self.guidance,
            **({"set": dict(self.changed)} if self.changed else {}),
            "pictures": self.count,
            "skipped": dict(self.skipped),
            "seconds_per_image": self.drawn.seconds_per_image if self.drawn else None,
            "folder": str(self.drawn.folder) if self.drawn else None,
            **({"error": self.error} if self.error else {}),
            **{name: one.value if one else None for name, one in self.estimates.items()},
            "octaves": self.octaves.energies.tolist() if self.octaves else None,
            "bands": {
                name: {"error": one.error, "low": one.low, "high": one.high}
                for name, one in self.estimates.items()
                if one is not None and one.error is not None
            },
        }


@dataclass(frozen=True, kw_only=True)
class RealResult:
    """The rows, what they were measured with, and where the report is."""

    rows: Sequence[Row]
    facts: dict[str, Any]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    octaves: tuple[str, Octaves] | None = None  # that the rows' are shown beside, and whose they are
    paths: Mapping[str, Path] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            **{name: str(path) for name, path in self.paths.items()},
            "notes": list(self.notes),
            **self.facts,
        }
