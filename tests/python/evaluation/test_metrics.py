"""The table of metrics: what is measured, how it is written, and what the documents say of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddx.metrics.frechet import frechet_distance
from ddx.metrics.precision_recall import precision_recall
from ddx.metrics.table import METRICS, Against, Measured, shown_metrics
from ddx.scenes.checker import ATTRIBUTES

KEYS = (
    *("overall", "object", "colour", "count", "size", "relation"),
    *("frechet", "precision", "recall", "diversity", "seconds_per_image"),
)


def measured(**changes: Any) -> Measured:
    random = np.random.default_rng(0)
    values: dict[str, Any] = {
        "marks": {"overall": 0.5, "size": None},
        "features": random.normal(size=(12, 3)),
        "repeated": random.normal(size=(6, 3)),
        "seconds_per_image": 1.5,
        "against": Against(features=random.normal(size=(9, 3)) + 1.0, variance=2.0, num_seeds=3, neighbours=3),
    }
    return Measured(**{**values, **changes})


def test_each_metric_is_what_its_name_says() -> None:
    seen = measured()
    found = {metric.name: metric.measure(seen) for metric in METRICS}
    reference = seen.against.features
    assert tuple(found) == KEYS and {*KEYS[:6]} == {*ATTRIBUTES}
    assert (found["overall"], found["size"], found["count"]) == (0.5, None, None)
    assert found["frechet"] == frechet_distance(reference, seen.features)
    assert (found["precision"], found["recall"]) == precision_recall(reference, seen.features, 3)
    grouped = seen.repeated.reshape(2, 3, 3)
    assert found["diversity"] == pytest.approx(grouped.var(axis=1, ddof=1).sum(-1).mean() / 2.0)
    assert found["seconds_per_image"] == 1.5


def test_there_is_no_diversity_beside_a_teacher_that_has_none() -> None:
    still = measured(against=Against(features=np.eye(5), variance=0.0, num_seeds=3, neighbours=3))
    assert next(metric for metric in METRICS if metric.name == "diversity").measure(still) is None


def test_values_are_written_with_their_digits() -> None:
    texts = {metric.name: metric.text(0.123456) for metric in METRICS}
    assert {name for name, text in texts.items() if text == "0.123"} == {"frechet", "seconds_per_image"}
    assert {text for text in texts.values()} == {"0.12", "0.123"} and METRICS[0].text(None) == "–"


def test_a_metric_that_no_row_has_is_not_shown() -> None:
    rows = [{"model": "teacher", "overall": None, "recall": None}, {"recall": 0.0, "frechet": None}]
    assert [metric.name for metric in shown_metrics(rows)] == ["recall"]


def test_the_documents_name_every_metric(repository: Path) -> None:
    section = (repository / "docs" / "cli.md").read_text(encoding="utf-8").split("## Metrics")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert tuple(re.findall(r"`(\w+)`", " ".join(cells))) == KEYS
