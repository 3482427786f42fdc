"""The frame of every HTML page: a title, a lead, a body, a footer; styles are inline, light and dark both work."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #23211e; --soft: #78736b; --line: #e3dfd8; --card: #fff;
  --accent: #3159c9; --best: #e9effd; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --ink: #e9e7e2; --soft: #98958d; --line: #303238;
  --card: #1f2125; --accent: #8fabff; --best: #26304d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.6rem 1.4rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; }
p.lead { color: var(--soft); margin: 0 0 1.8rem; max-width: 46rem; }
p.note { color: var(--soft); font-size: .88rem; max-width: 46rem; }
code { font: .9em ui-monospace, "SF Mono", Menlo, monospace; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
table.scores { font-variant-numeric: tabular-nums; font-size: .93rem; min-width: min(40rem, 100%); }
.scores th, .scores td { padding: .42rem .85rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
.scores th { color: var(--soft); font-weight: 500; }
.scores th:first-child, .scores td:first-child { text-align: left; padding-left: 0; }
.scores tr.student td:first-child { color: var(--accent); font-weight: 600; }
.scores tr.rule td { border-bottom: 2px solid var(--line); }
.compare th { font-weight: 500; color: var(--soft); font-size: .85rem; padding: 0 .3rem .5rem; text-align: center; }
.compare th.student { color: var(--accent); }
.compare td { padding: .3rem; vertical-align: middle; }
.compare td.prompt { width: 15rem; min-width: 11rem; padding-right: 1.2rem; font-size: .92rem; }
.compare td.prompt small, figcaption small { display: block; color: var(--soft); }
.gap { padding-left: 1.1rem !important; }
img { display: block; border-radius: 6px; background: var(--line); max-width: 100%; height: auto; }
.compare img { width: 128px; max-width: none; }
.gallery { display: grid; gap: 1.3rem; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
figure { margin: 0; }
figure a { display: block; }
figure img { width: 100%; }
figcaption { font-size: .88rem; margin-top: .45rem; line-height: 1.4; }
.plots { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.plots figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; }
.plots figcaption { margin: 0 0 .7rem; }
.plots img { background: none; border-radius: 0; }
.examples { columns: 26rem; column-gap: 2rem; }
.examples > div { break-inside: avoid; padding-bottom: 1rem; }
.examples dt { font-weight: 600; }
.examples dt small, .examples li { color: var(--soft); font-weight: 400; font-size: .88rem; }
.examples dd { margin: 0; }
.examples ul { margin: .2rem 0 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.examples code { color: var(--ink); }
.small img { image-rendering: auto; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line);
  padding-top: .9rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of scores: headings, then rows of text; rows of the student are set apart."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    student_rows: frozenset[int] = field(default_factory=frozenset)
    note: str = ""


def scores(table: Table) -> str:
    """The table as HTML."""
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in table.headings)
    rows = []
    for number, row in enumerate(table.rows):
        kinds = ["student"] if number in table.student_rows else ["teacher"]
        if number + 1 in table.student_rows and number not in table.student_rows:
            kinds.append("rule")
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in row)
        rows.append(f'<tr class="{" ".join(kinds)}">{cells}</tr>')
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table class="scores"><thead><tr>{heads}</tr></thead><tbody>'
        + "\n".join(rows)
        + f"</tbody></table></div>{note}\n"
    )


def write_page(
    path: Path, title: str, lead: str, body: str, facts: Mapping[str, str], *, refresh_s: int | None = None
) -> Path:
    """Write a page with `body`, which is HTML, and `facts` at its foot; the rest is plain text. Returns its path.

    With `refresh_s` a browser loads it again after so many seconds. No reader sees half of it.
    """
    again = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">\n'
    foot = " · ".join(f"{html.escape(name)}: {html.escape(text)}" for name, text in facts.items())
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{again}"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n{body}\n'
        f"<footer>{foot}</footer>\n</main>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path
