"""The metrics of `ddx evaluate`: a row each. The table, the report and the model card show them in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddx.metrics.diversity import prompt_variance
from ddx.metrics.frechet import frechet_distance
from ddx.metrics.precision_recall import precision_recall

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Against:
    """What all models are compared with: features `[M, D]`, and the variance of the teacher at its most steps."""

    features: Array
    variance: float
    num_seeds: int
    neighbours: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of the pictures of one model at one number of steps.

    marks: what the scene checker says, by name; empty for prompts that it cannot mark.
    features: of the scored pictures, `[N, D]`; repeated: of several seeds of each prompt, next to each other.
    """

    marks: Mapping[str, float | None]
    features: Array
    repeated: Array
    seconds_per_image: float
    against: Against

    @cached_property
    def precision_and_recall(self) -> tuple[float, float]:
        """Both; they share the distances of all pairs."""
        return precision_recall(self.against.features, self.features, self.against.neighbours)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: its key in reports, its title, how its values are written, and how it is measured.

    `measure` returns None where there is nothing to measure.
    """

    name: str
    title: str
    digits: str  # a format: .2f for shares, .3g for distances and times
    measure: Callable[[Measured], float | None]
    on_card: bool = True

    def text(self, value: Any) -> str:
        """Return a value as people read it; a dash for None."""
        return "–" if value is None else format(float(value), self.digits)


def _marked(name: str, *, on_card: bool = False) -> Metric:
    """Return the share of pictures for which an attribute of the caption holds, by the scene checker."""
    return Metric(name=name, title=name, digits=".2f", measure=lambda seen: seen.marks.get(name), on_card=on_card)


def _diversity(seen: Measured) -> float | None:
    """Return the variance over the seeds of a prompt, relative to the teacher's at its most steps."""
    variance = prompt_variance(seen.repeated, seen.against.num_seeds)
    return variance / seen.against.variance if seen.against.variance > 0 else None


METRICS: tuple[Metric, ...] = (
    _marked("overall", on_card=True),
    _marked("object"),
    _marked("colour"),
    _marked("count"),
    _marked("size"),
    _marked("relation"),
    Metric(
        name="frechet",
        title="Fréchet",
        digits=".3g",
        measure=lambda seen: frechet_distance(seen.against.features, seen.features),
    ),
    Metric(name="precision", title="precision", digits=".2f", measure=lambda seen: seen.precision_and_recall[0]),
    Metric(name="recall", title="recall", digits=".2f", measure=lambda seen: seen.precision_and_recall[1]),
    Metric(name="diversity", title="diversity", digits=".2f", measure=_diversity),
    Metric(name="seconds_per_image", title="s / picture", digits=".3g", measure=lambda seen: seen.seconds_per_image),
)


def shown_metrics(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics that at least one row has."""
    return [metric for metric in METRICS if any(row.get(metric.name) is not None for row in rows)]
