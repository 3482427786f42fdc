"""Runs that are watched for a collapse: what `collapses.py` and `mode_loss.py` share. A line of JSON a run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _environment import RESULTS

from ddx.cli.console import emit

Row = dict[str, Any]
SCORES = ("overall", "coverage", "recall")  # of which a student must not lose a quarter; the first is that of the best


@dataclass(frozen=True)
class Case:
    """A run: a method, whether it is to collapse, and settings over the recipe."""

    name: str
    method: str
    collapse: bool
    settings: dict[str, Any] = field(default_factory=dict)


def parser_of(description: str | None, cases: Sequence[Case]) -> argparse.ArgumentParser:
    """Return a parser with the arguments that both benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", action="append", type=int, help="may be repeated (default: 0)")
    parser.add_argument("--case", action="append", choices=[case.name for case in cases], help="may be repeated")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--report", action="store_true", help="print the figures of the runs that are there")
    return parser


def run_missing(
    cases: Sequence[Case], arguments: argparse.Namespace, path: Path, run: Callable[[Case, int], Row]
) -> None:
    """Make the runs that are asked for and not in the result file, and add each to it."""
    began = time.monotonic()
    for seed in arguments.seed or [0]:
        for case in cases:
            known = {(row["name"], row["seed"]) for row in rows_of(path)}
            wanted = arguments.case is None or case.name in arguments.case
            if not wanted or (case.name, seed) in known or time.monotonic() - began > 60.0 * arguments.minutes:
                continue
            row = run(case, seed)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            score = scores_of(row)[0]
            emit(f"{case.name}, seed {seed}, {score}: {[look['scores'][score] for look in row['looks']]}")


def rows_of(path: Path) -> list[Row]:
    """Return the runs that are in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def scores_of(row: Row) -> list[str]:
    """Return the names of the scores that its looks have."""
    return [name for name in SCORES if name in row["looks"][0]["scores"]]
