"""Curves of a sweep as inline SVG: FID against CLIPScore over guidance, each metric over steps and over seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddx.chart import STYLE, Chart, Marked, figure
from ddx.evaluation.measures import MEASURES

if TYPE_CHECKING:
    from ddx.evaluation.real_rows import Row

MOST_TICKS = 6  # values of steps or guidance that are written below an axis, each at its place


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
    if not plots:
        return ""
    return f'<style>{STYLE}</style>\n<h2>Curves</h2>\n<div class="plots">' + "\n".join(plots) + "</div>\n"


def _pairs(rows: Sequence[Row]) -> dict[str, list[Marked]]:
    lines: dict[str, list[Marked]] = {}
    for row in sorted(rows, key=lambda row: row.guidance or 0.0):
        x, y = row.estimates.get("clipscore"), row.estimates.get("fid")
        if x is not None and y is not None:
            lines.setdefault(_line(row, without="guidance"), []).append((x.value, y.value, row.title))
    return lines


def _over(rows: Sequence[Row], name: str, axis: str) -> dict[str, list[Marked]]:
    lines: dict[str, list[Marked]] = {}
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


def _plot(title: str, x_name: str, y_name: str, lines: dict[str, list[Marked]]) -> str:
    """Return a figure; nothing where no line has two points."""
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    known = sorted({x for points in lines.values() for x, _, _ in points})
    return figure(
        Chart(
            title=title,
            lines={name: [(x, y) for x, y, _ in points] for name, points in lines.items()},
            x_name=x_name,
            x_ticks=known if len(known) <= MOST_TICKS else (known[0], known[-1]),
            tips={name: [f"{label}: {y_name} {y:.4g}" for _, y, label in points] for name, points in lines.items()},
        )
    )
