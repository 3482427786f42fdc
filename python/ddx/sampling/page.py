"""HTML pages of pictures that need no other file: a gallery, and samplers side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.page import Table, scores, write_page

if TYPE_CHECKING:
    from PIL.Image import Image

# Up to this side a picture is embedded as PNG, exactly; larger ones as JPEG of at most MAX_EMBEDDED pixels a side.
EXACT_SIDE = 160
MAX_EMBEDDED = 640
SHOWN_SIDE = 256

_SAME_NOISE = '<p class="note">One row is one prompt and one seed: all of it starts from the same noise.</p>\n'


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One picture of a gallery. `link` is the file that a click opens, relative to the page."""

    picture: Image
    prompt: str
    seed: int
    link: str | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a comparison: who drew it, in how many steps, and a picture for each prompt."""

    title: str
    pictures: Sequence[Image]
    student: bool = False


def gallery_page(path: Path, title: str, lead: str, shown: Sequence[Shown], facts: Mapping[str, str]) -> Path:
    """Write a page with pictures, their prompts and seeds; return its path."""
    figures = []
    for item in shown:
        image = _image(item.picture, item.prompt)
        if item.link:
            image = f'<a href="{html.escape(item.link)}">{image}</a>'
        caption = f"{html.escape(item.prompt)}<small>seed {item.seed}</small>"
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return write_page(path, title, lead, '<div class="gallery">' + "\n".join(figures) + "</div>", facts)


def comparison_page(
    path: Path,
    *,
    title: str,
    lead: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    columns: Sequence[Column],
    table: Table | None = None,
    extra: str = "",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write a page with one row a prompt and one column a sampler, the table of scores above it; return its path.

    extra: HTML between the table and the pictures.
    """
    body = ""
    if table is not None:
        body += "<h2>Scores</h2>\n" + scores(table)
    body += extra
    gaps = [bool(i) and column.student != columns[i - 1].student for i, column in enumerate(columns)]
    heads = "".join(
        f'<th class="{"student" if column.student else "teacher"}{" gap" * gap}">{html.escape(column.title)}</th>'
        for column, gap in zip(columns, gaps, strict=True)
    )
    rows = []
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        cells = "".join(
            f"<td{' class=gap' if gap else ''}>{_image(column.pictures[number], f'{column.title}: {prompt}')}</td>"
            for column, gap in zip(columns, gaps, strict=True)
        )
        rows.append(f'<tr><td class="prompt">{html.escape(prompt)}<small>seed {seed}</small></td>{cells}</tr>')
    body += "<h2>Side by side</h2>\n" + _SAME_NOISE
    body += f'<div class="scroll"><table class="compare"><thead><tr><th></th>{heads}</tr></thead><tbody>'
    body += "\n".join(rows) + "</tbody></table></div>"
    return write_page(path, title, lead, body, facts or {})


def _image(picture: Image, alt: str) -> str:
    width, height = picture.size
    buffer = io.BytesIO()
    if max(width, height) <= EXACT_SIDE:
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
        shown = (width * 2, height * 2) if max(width, height) * 2 <= SHOWN_SIDE else (width, height)
    else:
        kind = "jpeg"
        small = picture.convert("RGB")
        small.thumbnail((MAX_EMBEDDED, MAX_EMBEDDED))
        small.save(buffer, "JPEG", quality=90)
        shown = small.size
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{shown[0]}" height="{shown[1]}" alt="{html.escape(alt)}">'
    )
