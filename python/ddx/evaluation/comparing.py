"""Reports side by side: one table of their rows, and what of their protocols differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import UsageError
from ddx.evaluation.protocols import differences

REPORT = "report.json"
# What must be equal of two reports in ddx's own feature space.
OWN = ("num_images", "size", "reference", "feature_space")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows with the report that each is of, the numbers that they have, and sentences on what differs."""

    rows: list[dict[str, Any]]
    metrics: tuple[str, ...]
    differences: list[str]


def report_path(path: Path) -> Path | None:
    """Return the report at a path: the file, or the one in a folder; None where there is none."""
    if path.is_file() and path.suffix == ".json":
        return path
    return path / REPORT if (path / REPORT).is_file() else None


def compare_reports(paths: Sequence[Path]) -> Comparison:
    """Return the rows of reports. UsageError for a file that is none, or of another kind than the first."""
    reports = [_read(path) for path in paths]
    kinds = {_is_real(report) for report in reports}
    if len(kinds) > 1:
        raise UsageError(
            "one report compares with real pictures, another one in ddx's own feature space",
            hint="evaluate both with --reference, or both without",
        )
    rows = [{"report": str(path), **row} for path, report in zip(paths, reports, strict=True) for row in report["rows"]]
    facts = [_facts(report) for report in reports]
    found = [
        f"{paths[0]} and {path} differ in {sentence}"
        for path, other in zip(paths[1:], facts[1:], strict=True)
        for sentence in differences(facts[0], other)
    ]
    return Comparison(rows=rows, metrics=_metrics(rows), differences=found)


def _metrics(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    from ddx.evaluation.measures import MEASURES
    from ddx.metrics.table import METRICS

    known = dict.fromkeys([*MEASURES, *(metric.name for metric in METRICS)])
    return tuple(name for name in known if any(row.get(name) is not None for row in rows))


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    if _is_real(report):
        return dict(report["protocol"])
    own = {name: report.get(name) for name in OWN}
    prompts, seed = report.get("config", {}).get("prompts"), report.get("config", {}).get("seed")
    # under the names of `COMPARED`, so that one comparison serves both kinds
    return {
        "num_images": own["num_images"],
        "size": own["size"],
        "reference": own["reference"],
        "networks": own["feature_space"],
        "prompts_sha256": prompts,
        "seed_rule": seed,
    }


def _is_real(report: Mapping[str, Any]) -> bool:
    return isinstance(report.get("protocol"), Mapping)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the report {path}: {error}", hint="give a report.json of ddx evaluate"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise UsageError(f"{path} is no report of ddx evaluate", hint="give its report.json, or the folder of it")
    return content
