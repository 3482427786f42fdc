"""The figures of `collapses.py` and `mode_loss.py`: what was lost, what raised an alarm, and bounds that are fitted on
one half of the runs and judged on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from _watched_runs import Row, scores_of

from ddx.watch.alarms import LOOKS, RULES, TOGETHER, Rule, alarms, excesses

LOST = 0.75  # of its best: what counts as a student that is lost
MARGIN = 1.1  # of the fitted limits over the largest excess of a recipe that was not lost


@dataclass(frozen=True)
class Limits:
    """When an alarm is raised: by single rules, and by all of them together."""

    rules: Sequence[Rule] = RULES
    together: float = TOGETHER


def lost_at(row: Row) -> int | None:
    """Return the step at which a score lost a quarter of its best, at two looks in a row or the last.

    The best is the best mean of two looks in a row: one look by itself may be lucky.
    """
    found = []
    for name in scores_of(row):
        values = [look["scores"][name] for look in row["looks"]]
        best = 0.0
        for number, value in enumerate(values):
            best = max(best, (value + values[max(number - 1, 0)]) / 2)
            later = values[number + 1] if number + 1 < len(values) else value
            if max(value, later) < LOST * best:
                found.append(int(row["looks"][number]["step"]))
                break
    return min(found, default=None)


def alarm_at(row: Row, limits: Limits) -> tuple[int, list[str]] | None:
    """Return the step of the first alarm, and the names of the rules that raise it."""
    for number in range(1, len(row["looks"]) + 1):
        looks = row["looks"][:number]
        if found := alarms(looks, looks[0]["judged_steps"], row.get("warm_up", 0), limits.rules, limits.together):
            return int(looks[-1]["step"]), [alarm.name for alarm in found]
    return None


def fitted(rows: Sequence[Row]) -> Limits:
    """Return ddx's limits in the proportion that leaves the healthy rows below them by `MARGIN`."""
    healthy = [row for row in rows if lost_at(row) is None and not row["collapse"]]
    alone = max(
        max(_peak([excess / rule.bound for excess in _excesses(row, rule)]) for rule in RULES) for row in healthy
    )
    norms = [np.linalg.norm([[e / r.bound for e in _excesses(row, r)] for r in RULES], axis=0).max() for row in healthy]
    rules = tuple(replace(rule, bound=round(rule.bound * alone * MARGIN, 3)) for rule in RULES)
    return Limits(rules, round(float(max(norms)) / alone, 3))  # in the new bounds, and by the same margin


def _excesses(row: Row, rule: Rule) -> list[float]:
    return excesses(row["looks"], rule, row["looks"][0]["judged_steps"])


def _peak(values: Sequence[float]) -> float:
    """Return the largest value that LOOKS looks in a row have reached."""
    return max((min(values[k - LOOKS + 1 : k + 1]) for k in range(LOOKS - 1, len(values))), default=0.0)


def kept_gap(row: Row) -> float:
    """Return how many points of its first score the look that is best by distance is behind the best in hindsight."""
    name = scores_of(row)[0]
    looks = [look for look in row["looks"] if look["step"] > 0]
    steps = str(looks[0]["judged_steps"])
    kept = min(looks, key=lambda look: float(look["student"][steps]["distance"]))
    return 100.0 * (max(look["scores"][name] for look in looks) - kept["scores"][name])


def judged(rows: Sequence[Row], limits: Limits) -> dict[str, Any]:
    """Return the figures of the rows under the limits, and a line a run."""
    lines, caught, soon, lost, false, healthy, neither = [], 0, 0, 0, 0, 0, 0
    for row in rows:
        gone, alarm = lost_at(row), alarm_at(row, limits)
        if gone is not None:
            lost += 1
            caught += alarm is not None and alarm[0] <= gone
            soon += alarm is not None and alarm[0] <= _next_look(row, gone)
        elif row["collapse"]:
            neither += 1
        else:
            healthy += 1
            false += alarm is not None
        lines.append(
            {
                "name": row["name"],
                "seed": row["seed"],
                "driven": row["collapse"],
                "lost_at": gone,
                "alarm_at": None if alarm is None else alarm[0],
                "alarms": [] if alarm is None else alarm[1],
                "kept_behind_best": round(kept_gap(row), 1),
            }
        )
    gaps = [line["kept_behind_best"] for line in lines]
    return {
        **{
            "runs": len(rows),
            "lost": lost,
            "caught": caught,
            "caught_by_the_next_look": soon,
            "healthy": healthy,
            "false_alarms": false,
            "driven_and_not_lost": neither,
        },
        "mean_points_behind_best": round(sum(gaps) / len(gaps), 1) if gaps else None,
        "lines": lines,
    }


def _next_look(row: Row, step: int) -> int:
    """Return the step of the look behind `step`: where a student is lost between two looks, the first that can tell."""
    return min((int(look["step"]) for look in row["looks"] if look["step"] > step), default=step)


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return every second run that was lost, and every second one that was not, then the others, in their order."""
    first, second = [], []
    for lost in (False, True):
        own = [row for row in rows if (lost_at(row) is not None) is lost]
        first += own[::2]
        second += own[1::2]
    return first, second


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return all figures: bounds of the first half, judged on both halves and with the bounds that ddx has."""
    first, second = halves([row for row in rows if len(row["looks"]) > LOOKS])
    limits = fitted(first)
    return {
        "bounds": {rule.name: rule.bound for rule in limits.rules},
        "together": limits.together,
        "fitted_on": judged(first, limits),
        "judged_on": judged(second, limits),
        "with_the_limits_of_ddx": judged([*first, *second], Limits()),
    }


def report(rows: Sequence[Row]) -> str:
    """Return the figures in words."""
    found = figures(rows)
    lines = [f"limits fitted on the first half: {found['bounds']}, together {found['together']}"]
    for name in ("fitted_on", "judged_on", "with_the_limits_of_ddx"):
        lines.append("\n" + in_words(name.replace("_", " "), found[name]))
    return "\n".join(lines)


def in_words(name: str, part: dict[str, Any]) -> str:
    """Return what :func:`judged` found in words, with a line a run."""
    lines = [
        f"{name}: {part['runs']} runs; of {part['lost']} lost ones {part['caught']} in time and "
        f"{part['caught_by_the_next_look']} by the next look; {part['false_alarms']} false alarms in {part['healthy']} "
        f"recipes that were not lost; {part['driven_and_not_lost']} driven and not lost; the kept look "
        f"{part['mean_points_behind_best']} points behind the best"
    ]
    lines += [
        f"  {line['name']}, seed {line['seed']}: lost at {line['lost_at']}, alarm at {line['alarm_at']} "
        f"{line['alarms']}, kept {line['kept_behind_best']} behind"
        for line in part["lines"]
    ]
    return "\n".join(lines)
