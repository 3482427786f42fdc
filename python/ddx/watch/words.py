"""A look in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddx.watch.vector import ratio

_SHOWN = (
    ("brightness", "brightness"),
    ("contrast", "contrast"),
    ("saturation", "saturation"),
    ("octave_1", "finest detail"),
    ("variety_features", "variety"),
)


def look_line(look: Mapping[str, Any]) -> str:
    """Return the line: numbers as ratios to the teacher's, the distance to its pictures, and the best so far."""
    steps = str(look["judged_steps"])
    student, teacher = look["student"][steps], look["teacher"]
    parts = [f"{title} {ratio(student[name], teacher[name]):.2f}" for name, title in _SHOWN]
    parts.append(f"clipped {student['clipped'] - teacher['clipped']:+.3f}")
    best = look["best"]
    better = "" if best["step"] in (None, look["step"]) else f" (best by {best['metric']}: step {best['step']})"
    marks = f", overall {student['overall']:.2f}" if "overall" in student else ""
    distance = f"distance {student['distance']:.3g}{marks}{better}"
    return f"look at step {look['step']}: {', '.join(parts)} of the teacher's; {distance}"
