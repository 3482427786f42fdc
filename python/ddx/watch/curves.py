"""Curves as inline SVG: a few lines over the steps, a dashed line of the teacher, marks for the best and for alarms."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 22
Point = tuple[float, float]

STYLE = """
.chart { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif; }
.chart text { fill: var(--soft); }
.chart .axis { stroke: var(--line); fill: none; }
.chart .reference { stroke: var(--soft); stroke-dasharray: 4 3; fill: none; }
.chart .best { stroke: var(--accent); stroke-dasharray: 1 3; stroke-width: 1.5; }
.chart .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .line-0, .key-0 { stroke: var(--accent); color: var(--accent); }
.chart .line-1, .key-1 { stroke: #c77d1f; color: #c77d1f; }
.chart .line-2, .key-2 { stroke: #3d9a6a; color: #3d9a6a; }
.chart .line-3, .key-3 { stroke: #a45bc4; color: #a45bc4; }
.chart .line-4, .key-4 { stroke: #c2506a; color: #c2506a; }
.chart .dot-0 { fill: var(--accent); } .chart .dot-1 { fill: #c77d1f; } .chart .dot-2 { fill: #3d9a6a; }
.chart .dot-3 { fill: #a45bc4; } .chart .dot-4 { fill: #c2506a; }
.chart .alarm { fill: #d23c3c; }
.keys { font-size: .8rem; color: var(--soft); margin: .3rem 0 0; }
.keys span { white-space: nowrap; margin-right: .8rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart: `lines` of (step, value) by name; `reference`: the teacher's value; `best`: a step; `alarms`: steps."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    note: str = ""
    reference: float | None = None
    best: int | None = None
    alarms: frozenset[int] = field(default_factory=frozenset)


def figure(chart: Chart) -> str:
    """Return the chart as an HTML figure, empty where no line has a finite point."""
    lines = {name: _finite(points) for name, points in chart.lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    note = f"<small>{html.escape(chart.note)}</small>" if chart.note else ""
    keys = ""
    if len(lines) > 1:
        spans = (f'<span><b class="key-{n % 5}">—</b> {html.escape(name)}</span>' for n, name in enumerate(lines))
        keys = f'<p class="keys">{"".join(spans)}</p>'
    caption = f"<figcaption>{html.escape(chart.title)}{note}</figcaption>"
    return f"<figure>{caption}{_svg(chart, lines)}{keys}</figure>"


def _svg(chart: Chart, lines: dict[str, list[Point]]) -> str:
    steps = [x for points in lines.values() for x, _ in points]
    values = [y for points in lines.values() for _, y in points]
    if chart.reference is not None:
        values.append(chart.reference)
    first, last = min(steps), max(max(steps), min(steps) + 1)
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
    for x, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{at(x, low).split(",")[0]}" y="{HEIGHT - 5}" text-anchor="{anchor}">step {int(x)}</text>'
        )
    if chart.reference is not None:
        ends = f"M{at(first, chart.reference)} L{at(last, chart.reference)}"
        parts.append(f'<path class="reference" d="{ends}"><title>teacher</title></path>')
    if chart.best is not None and first <= chart.best <= last:
        ends = f"M{at(chart.best, low)} L{at(chart.best, high)}"
        parts.append(f'<path class="best" d="{ends}"><title>best: step {chart.best}</title></path>')
    for number, (name, points) in enumerate(lines.items()):
        path = " L".join(at(x, y) for x, y in points)
        parts.append(f'<path class="line line-{number % 5}" d="M{path}"><title>{html.escape(name)}</title></path>')
        for x, y in points:
            cx, cy = at(x, y).split(",")
            alarm = x in chart.alarms
            kind, radius = ("alarm", 3.4) if alarm else (f"dot-{number % 5}", 1.9)
            title = f"{name}, step {int(x)}: {y:.4g}{', alarm' if alarm else ''}"
            parts.append(
                f'<circle class="{kind}" cx="{cx}" cy="{cy}" r="{radius}"><title>{html.escape(title)}</title></circle>'
            )
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


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y)]
