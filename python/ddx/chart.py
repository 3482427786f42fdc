"""Charts as inline SVG: a few lines over steps or another axis, a dashed reference, marks for the best and alarms."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 22
Point = tuple[float, float]
Marked = tuple[float, float, str]

COLOURS = ("var(--accent)", "#c77d1f", "#3d9a6a", "#a45bc4", "#c2506a", "#b58900", "#2a8fa8", "#777777")

STYLE = """
.chart { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif; }
.chart text { fill: var(--soft); }
.chart .axis { stroke: var(--line); fill: none; }
.chart .reference { stroke: var(--soft); stroke-dasharray: 4 3; fill: none; }
.chart .best { stroke: var(--accent); stroke-dasharray: 1 3; stroke-width: 1.5; }
.chart .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .alarm { fill: #d23c3c; }
.keys { font-size: .8rem; color: var(--soft); margin: .3rem 0 0; }
.keys span { white-space: nowrap; margin-right: .8rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart: `lines` of (x, y) by name, over steps unless `x_name` says otherwise.

    reference: the value of `reference_name`. best: a step. alarms: steps. tips: what to say of each point, by line
    (None: its place and value). x_ticks: where x is written below the axis (None: at both ends).
    """

    title: str
    lines: Mapping[str, Sequence[Point]]
    note: str = ""
    reference: float | None = None
    reference_name: str = "teacher"
    best: int | None = None
    alarms: frozenset[int] = field(default_factory=frozenset)
    x_name: str = "step"
    x_ticks: Sequence[float] | None = None
    tips: Mapping[str, Sequence[str]] | None = None


def figure(chart: Chart) -> str:
    """Return the chart as an HTML figure, empty where no line has a finite point."""
    lines = {name: _finite(chart, name) for name in chart.lines}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    note = f"<small>{html.escape(chart.note)}</small>" if chart.note else ""
    keys = ""
    if len(lines) > 1:
        spans = (
            f'<span><b style="color: {_colour(n)}">—</b> {html.escape(name)}</span>' for n, name in enumerate(lines)
        )
        keys = f'<p class="keys">{"".join(spans)}</p>'
    caption = f"<figcaption>{html.escape(chart.title)}{note}</figcaption>"
    return f"<figure>{caption}{_svg(chart, lines)}{keys}</figure>"


def _svg(chart: Chart, lines: dict[str, list[Marked]]) -> str:
    steps = [x for points in lines.values() for x, _, _ in points]
    values = [y for points in lines.values() for _, y, _ in points]
    if chart.reference is not None:
        values.append(chart.reference)
    first, last = min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1.0
    low, high = _margins(min(values), max(values))

    def at(x: float, y: float) -> str:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for value in ticks(low, high):
        left, right = at(first, value), at(last, value)
        parts.append(f'<path class="axis" d="M{left} L{right}"/>')
        y = float(left.split(",")[1])
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for x, text, anchor in _below(chart, first, last):
        parts.append(f'<text x="{at(x, low).split(",")[0]}" y="{HEIGHT - 5}" text-anchor="{anchor}">{text}</text>')
    if chart.reference is not None:
        ends = f"M{at(first, chart.reference)} L{at(last, chart.reference)}"
        shown = html.escape(chart.reference_name)
        parts.append(f'<path class="reference" d="{ends}"><title>{shown}</title></path>')
    if chart.best is not None and first <= chart.best <= last:
        ends = f"M{at(chart.best, low)} L{at(chart.best, high)}"
        parts.append(f'<path class="best" d="{ends}"><title>best: step {chart.best}</title></path>')
    for number, (name, points) in enumerate(lines.items()):
        path, colour = " L".join(at(x, y) for x, y, _ in points), _colour(number)
        shown = html.escape(name)
        parts.append(f'<path class="line" style="stroke: {colour}" d="M{path}"><title>{shown}</title></path>')
        for x, y, tip in points:
            cx, cy = at(x, y).split(",")
            alarm = x in chart.alarms
            kind = 'class="alarm" r="3.4"' if alarm else f'style="fill: {colour}" r="1.9"'
            title = html.escape(f"{tip}{', alarm' if alarm else ''}")
            parts.append(f'<circle {kind} cx="{cx}" cy="{cy}"><title>{title}</title></circle>')
    label = html.escape(chart.title)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers in [low, high], steps of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough)
    start = math.ceil(low / step - 1e-9)
    return [number * step for number in range(start, math.floor(high / step + 1e-9) + 1)]


def _margins(low: float, high: float) -> Point:
    around = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - around if low < 0.0 or low >= around else 0.0, high + around


def _finite(chart: Chart, name: str) -> list[Marked]:
    """Return the points of a line whose values are finite, each with what it says."""
    points = chart.lines[name]
    tips = chart.tips[name] if chart.tips else [f"{name}, {chart.x_name} {x:g}: {y:.4g}" for x, y in points]
    return [(x, y, tip) for (x, y), tip in zip(points, tips, strict=True) if math.isfinite(y)]


def _below(chart: Chart, first: float, last: float) -> list[tuple[float, str, str]]:
    """Return what is written below the axis: where, the words, and which end of them is there."""
    name = html.escape(chart.x_name)
    if chart.x_ticks is None:
        return [(first, f"{name} {first:g}", "start"), (last, f"{name} {last:g}", "end")]
    least, *others = chart.x_ticks
    return [(least, f"{name} {least:.4g}", "start"), *((x, f"{x:.4g}", "end") for x in others)]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
