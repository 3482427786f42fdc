"""The page of a store: what failed and where, and what its pictures, captions and latents are like."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx import __version__
from ddx.data.inspection.ledger import cure
from ddx.data.inspection.plots import Plot, failure_plot, latent_plots, picture_plots, token_plot
from ddx.data.inspection.statistics import COLUMNS, count_pictures, latent_moments
from ddx.errors import cannot_write
from ddx.page import Table, scores, write_page

if TYPE_CHECKING:
    from ddx.data.store import Store
    from ddx.progress import Progress


def write_report(store: Store, found: Mapping[str, Any], folder: Path, progress: Progress) -> Path:
    """Write index.html and its plots into `folder`; return the page. `found` is the store's summary and ledger.

    Of a store that is not complete it shows the parts that are done. Raises DdxError when the disk refuses.
    """
    failures = [failure_plot(found["failed"])] if found["failed"] else []
    contents = _contents(store, progress) if found["ok"] else {}
    body = ""
    if failures:
        body += f"<h2>What failed</h2>\n{_figures(failures)}{_note(cure(found['failed']))}{_examples(found)}"
    if found["hosts"]["worst"]:
        body += f"<h2>Hosts</h2>\n{_hosts(found['hosts'])}"
    body += "".join(f"<h2>{title}</h2>\n{_figures(plots)}" for title, plots in contents.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in (plot for plots in (failures, *contents.values()) for plot in plots):
            plot.image.save(folder / f"{plot.name}.png", optimize=True)
        return write_page(folder / "index.html", store.path.absolute().name, _lead(found), body, _facts(store))
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error


def _contents(store: Store, progress: Progress) -> dict[str, list[Plot]]:
    counts = count_pictures(store.row_tables(COLUMNS, progress))
    moments = latent_moments(store, counts.sampled)
    scaling = np.asarray(store.attributes["scaling_factor"], dtype=np.float64)  # of all channels, or of each
    return {
        "Pictures": picture_plots(counts),
        "Captions and latents": [
            token_plot(store.token_counts()),
            *latent_plots(moments, len(counts.sampled), scaling),
        ],
    }


def _lead(found: Mapping[str, Any]) -> str:
    failed, parts = sum(found["failed"].values()), found["parts"]
    seen = found["ok"] + failed
    text = f"{found['ok']:,} of {seen:,} rows are fine, {failed:,} failed" if failed else f"All {seen:,} rows are fine"
    if not found["complete"]:
        text += f"; not complete, {parts['done']:,} of {parts['total']:,} parts are done"
    return f"{text}. Latents and captions for {found['teacher']} at {found['resolution']} px."


def _facts(store: Store) -> dict[str, str]:
    sources = store.sources
    more = f" and {len(sources) - 1:,} more" if len(sources) > 1 else ""
    return {"store": str(store.path), "made from": sources[0] + more, "ddx": __version__}


def _figures(plots: Sequence[Plot]) -> str:
    figures = []
    for plot in plots:
        width, height = plot.image.size
        alt = html.escape(f"{plot.title}: {plot.note}")
        figures.append(
            f"<figure><figcaption>{html.escape(plot.title)}<small>{html.escape(plot.note)}</small></figcaption>"
            f'<img src="{plot.name}.png" width="{width // 2}" height="{height // 2}" alt="{alt}"></figure>'
        )
    return '<div class="plots">' + "\n".join(figures) + "</div>\n"


def _examples(found: Mapping[str, Any]) -> str:
    """The first rows of each failure; addresses are text and no links, whatever lies there."""
    blocks = []
    for status, rows in found["examples"].items():
        items = "".join(
            f"<li>row {row['row']:,}, {html.escape(row['key'])}: {html.escape(row['detail'])}"
            + (f"<br><q>{html.escape(row['caption'])}</q>" if row["caption"] else "")
            + (f"<br><code>{html.escape(row['source'])}</code>" if row["source"] else "")
            + "</li>"
            for row in rows
        )
        title = f"{html.escape(status)} <small>{found['failed'].get(status, 0):,}</small>"
        blocks.append(f"<div><dt>{title}</dt><dd><ul>{items}</ul></dd></div>")
    return f'<dl class="examples">{"".join(blocks)}</dl>\n'


def _hosts(hosts: Mapping[str, Any]) -> str:
    rows = [
        [host["host"], *(f"{host[key]:,}" for key in ("rows", "ok", "failed")), host["most"] or "–"]
        for host in hosts["worst"]
    ]
    if others := hosts["others"]:
        name = "others" if others["hosts"] is None else f"{others['hosts']:,} others"
        rows.append([name, *(f"{others[key]:,}" for key in ("rows", "ok", "failed")), ""])
    note = "" if hosts["exact"] else "There are so many hosts that the numbers of one may be too low."
    return scores(Table(headings=["", "rows", "ok", "failed", "most often"], rows=rows, note=note))


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>\n' if text else ""
