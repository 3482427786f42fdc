"""Curves of a sweep as inline SVG: FID against CLIPScore over guidance, each metric over steps and over seconds."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddx.evaluation.measures import MEASURES

if TYPE_CHECKING:
    from ddx.evaluation.real_rows import Row

Point = tuple[float, float, str]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 230, 52, 36, 12, 12
MOST_TICKS = 6  # values of steps or guidance that are written below an axis, each at its place
COLOURS = ("#3159c9", "#c9552d", "#2f8f5b", "#8a4fc0", "#b58900", "#c2387e", "#2a8fa8", "#777777")


def curves_of(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return the plots that rows of more than one setting give, as HTML; nothing for one row."""
    plots = []
    scales, steps = {row.guidance for row in rows}, {row.steps for row in rows}
    if len(scales) > 1 and {"fid", "clipscore"} <= set(names):
        plots.append(_plot("FID against CLIPScore, over guidance", "CLIPScore", "FID", _pairs(rows)))
    for name in names:
        title = MEASURES[name].title
        if len(steps) > 1:
            plots.append(_plot(f"{title} over steps", "steps", title, _over(rows, name, "steps")))
        if len(scales) > 1:
            plots.append(_plot(f"{title} over guidance", "guidance", title, _over(rows, name, "guidance")))
    if len(steps) > 1 and names:
        title = MEASURES[names[0]].title
        plots.append(_plot(f"{title} over seconds a picture", "s / picture", title, _over(rows, names[0], "seconds")))
    plots = [plot for plot in plots if plot]
    return '<h2>Curves</h2>\n<div class="plots">' + "\n".join(plots) + "</div>\n" if plots else ""


def _pairs(rows: Sequence[Row]) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda row: row.guidance or 0.0):
        x, y = row.estimates.get("clipscore"), row.estimates.get("fid")
        if x is not None and y is not None:
            lines.setdefault(_line(row, without="guidance"), []).append((x.value, y.value, row.title))
    return lines


def _over(rows: Sequence[Row], name: str, axis: str) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for row in rows:
        seconds = row.drawn.seconds_per_image if row.drawn else None
        x = {"steps": row.steps, "guidance": row.guidance, "seconds": seconds}[axis]
        y = row.estimates.get(name)
        if x is not None and y is not None:
            point = (float(x), y.value, row.title)
            lines.setdefault(_line(row, without="steps" if axis == "seconds" else axis), []).append(point)
    return {line: sorted(points) for line, points in lines.items()}


def _line(row: Row, without: str) -> str:
    """Return what the rows of one line have in common."""
    parts = [row.model]
    if without != "steps" and row.steps is not None:
        parts.append(f"{row.steps} step{'s' if row.steps > 1 else ''}")
    if without != "guidance" and row.guidance is not None:
        parts.append(f"guidance {row.guidance:g}")
    return ", ".join([*parts, *(f"{key} {value}" for key, value in row.changed.items())])


def _plot(title: str, x_name: str, y_name: str, lines: dict[str, list[Point]]) -> str:
    """Return a figure; nothing where no line has two points."""
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    points = [point for line in lines.values() for point in line]
    x_low, x_high = _range([x for x, _, _ in points])
    y_low, y_high = _range([y for _, y, _ in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    parts = []
    for y in (y_low, (y_low + y_high) / 2, y_high):
        down = place(x_low, y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down + 4}" text-anchor="end">{y:.3g}</text>')
    known = sorted({x for x, _, _ in points})
    for x in known if len(known) <= MOST_TICKS else (x_low, (x_low + x_high) / 2, x_high):
        right = place(x, y_low)[0]
        parts.append(f'<text x="{right}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{x:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_name)}</text>')
    legend = []
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y, _ in line]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (_, value, label) in zip(places, line, strict=True):
            tip = html.escape(f"{label}: {y_name} {value:.4g}")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"><title>{tip}</title></circle>')
        legend.append(f'<small style="color:{colour}">— {html.escape(name)}</small>')
    return (
        f"<figure><figcaption>{html.escape(title)}<br>{' '.join(legend)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        "<style>text { font-size: 11px; fill: currentColor; opacity: .7 } .grid { stroke: currentColor; opacity: .15 }"
        f"</style>{''.join(parts)}</svg></figure>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin
