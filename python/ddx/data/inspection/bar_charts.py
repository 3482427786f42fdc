"""Bar charts as PNG, drawn with Pillow on nothing: their colours are legible on a light page and on a dark one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddx.data.inspection.statistics import nice_step

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

# Drawn at about twice the size at which a page shows them.
WIDTH, HEIGHT = 800, 400
FONT_SIZE = 26
MARGIN = 8
NUM_LINES = 4
LEAST = 4
BAR = (92, 130, 230, 255)
LINE = (133, 128, 120, 80)
TEXT = (133, 128, 120, 255)


def column_chart(values: Sequence[float], ticks: Sequence[tuple[float, str]]) -> Image:
    """Upright bars from 0, values of either sign, at least one; ticks are labels at places counted in bars."""
    image, draw = _canvas(HEIGHT)
    low, high = min(0.0, *values), max(0.0, *values)
    step = nice_step((high - low) or 1.0, NUM_LINES)
    if all(float(value).is_integer() for value in values):
        step = max(step, 1.0)  # no half rows
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    labels = {number: _number(number * step) for number in range(first, last + 1)}
    left = max(draw.textlength(label) for label in labels.values()) + 2 * MARGIN
    top, bottom = FONT_SIZE, HEIGHT - 2 * FONT_SIZE

    def y(value: float) -> float:
        return bottom - (value / step - first) / (last - first) * (bottom - top)

    for number, label in labels.items():
        draw.line([(left, y(number * step)), (WIDTH, y(number * step))], fill=LINE, width=2)
        draw.text((left - MARGIN, y(number * step)), label, fill=TEXT, anchor="rm")
    width = (WIDTH - left) / len(values)
    gap = 2 if width >= 8 else 0
    for number, value in enumerate(values):
        if value:
            # Whatever is there rises above the line, were it one row in a million.
            height = max(abs(y(value) - y(0.0)), LEAST)
            start, end = (y(0.0) - height, y(0.0)) if value > 0 else (y(0.0), y(0.0) + height)
            right = max(left + (number + 1) * width - gap - 1, left + number * width)
            draw.rectangle([left + number * width, start, right, end], fill=BAR)
    draw.line([(left, y(0.0)), (WIDTH, y(0.0))], fill=TEXT, width=2)
    for place, label in ticks:
        half = draw.textlength(label) / 2
        x = min(max(left + place * width, left + half), WIDTH - half)
        draw.text((x, bottom + MARGIN), label, fill=TEXT, anchor="ma")
    return image


def row_chart(values: Sequence[tuple[str, int]]) -> Image:
    """Lying bars, each with its name to the left and its number to the right; at least one value."""
    pitch = 2 * FONT_SIZE
    image, draw = _canvas(pitch * len(values) + MARGIN)
    left = max(draw.textlength(name) for name, _ in values) + 2 * MARGIN
    right = WIDTH - max(draw.textlength(f"{value:,}") for _, value in values) - 2 * MARGIN
    largest = max(value for _, value in values) or 1
    for number, (name, value) in enumerate(values):
        middle = MARGIN / 2 + (number + 0.5) * pitch
        end = left + max(value / largest * (right - left), LEAST)
        draw.text((left - 2 * MARGIN, middle), name, fill=TEXT, anchor="rm")
        draw.rectangle([left, middle - 0.6 * FONT_SIZE, end, middle + 0.6 * FONT_SIZE], fill=BAR)
        draw.text((end + MARGIN, middle), f"{value:,}", fill=TEXT, anchor="lm")
    return image


def _canvas(height: int) -> tuple[Image, ImageDraw]:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGBA", (WIDTH, height), (*TEXT[:3], 0))  # of the text's colour, so that its edges have no fringe
    draw = ImageDraw.Draw(image)
    draw.font = ImageFont.load_default(FONT_SIZE)
    return image, draw


def _number(value: float) -> str:
    """A value on an axis, short: 20,000 is 20k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"
