"""The report of a comparison with real pictures: report.json, rows.csv, and one page with curves and pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, cannot_write
from ddx.evaluation.curves import curves_of
from ddx.evaluation.measures import MEASURES
from ddx.evaluation.octaves import octave_chart
from ddx.metrics.pictures import NUM_OCTAVES
from ddx.run_record import write_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddx.evaluation.real_rows import RealResult, Row

MOST_COLUMNS = 12


def write_real_report(folder: Path, result: RealResult, num_prompts: int) -> RealResult:
    """Write report.json, rows.csv and index.html into `folder`; return the result with their paths."""
    from ddx.page import Table
    from ddx.sampling.page import comparison_page

    good = [row for row in result.rows if row.error is None]
    table = Table(
        headings=["", "pictures", *(MEASURES[name].title for name in result.names), "s / picture"],
        rows=[_cells(row, result.names) for row in result.rows],
        student_rows=frozenset(i for i, row in enumerate(result.rows) if row.kind == "student"),
        note=" ".join(result.notes),
    )
    columns, prompts, seeds = _columns(good[:MOST_COLUMNS], num_prompts)
    protocol = result.facts["protocol"]
    paths = {"report": folder / "report.json", "table": folder / "rows.csv", "page": folder / "index.html"}
    final = dataclasses.replace(result, paths=paths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        comparison_page(
            paths["page"],
            title=" and ".join(dict.fromkeys(row.model for row in result.rows)),
            lead=_lead(result),
            prompts=prompts,
            seeds=seeds,
            columns=columns,
            table=table,
            extra=curves_of(good, result.names) + _frequencies(good, result),
            facts={
                name: str(protocol[key])
                for name, key in (
                    ("protocol", "protocol"),
                    ("reference", "reference"),
                    ("prompts", "prompts_sha256"),
                    ("resize", "resize"),
                    ("dtype", "dtype"),
                )
                if protocol.get(key)
            }
            | {name: facts["weights"] for name, facts in protocol["networks"].items()},
        )
        paths["table"].write_text(as_csv(result.rows, result.names), encoding="utf-8")
        write_json(paths["report"], final.to_dict())
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error
    return final


def as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return the rows as CSV: each metric with its standard error beside it, and the energy of luma by octave."""
    changed = list(dict.fromkeys(key for row in rows for key in row.changed))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [column for name in names for column in (name, f"{name}_error")]
    octaves = [f"octave_{k + 1}" for k in range(NUM_OCTAVES)]
    writer.writerow(
        ["model", "steps", "guidance", *changed, "pictures", *heads, *octaves, "seconds_per_image", "error"]
    )
    for row in rows:
        cells: list[Any] = [row.model, row.steps, row.guidance, *(row.changed.get(key) for key in changed), row.count]
        for name in names:
            one = row.estimates.get(name)
            cells += [None, None] if one is None else [one.value, one.error]
        cells += [None] * NUM_OCTAVES if row.octaves is None else row.octaves.energies.tolist()
        writer.writerow([*cells, row.drawn.seconds_per_image if row.drawn else None, row.error])
    return out.getvalue()


def _frequencies(rows: Sequence[Row], result: RealResult) -> str:
    """Return the chart of the rows' octaves; nothing for a row beside itself."""
    if result.octaves is None:
        return ""
    name, reference = result.octaves
    shown = {row.title: row.octaves for row in rows if row.octaves is not None and row.octaves is not reference}
    return octave_chart(shown, name, reference)


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    if row.error:
        return [row.title, "–", *("–" for _ in names), row.error]
    cells = []
    for name in names:
        one = row.estimates.get(name)
        cells.append(MEASURES[name].text(one.value if one else None, one.error if one else None))
    seconds = row.drawn.seconds_per_image if row.drawn else None
    return [row.title, str(row.count), *cells, "–" if seconds is None else f"{seconds:.3g}"]


def _columns(rows: Sequence[Row], num_prompts: int) -> tuple[list[Any], list[str], list[int]]:
    """Return the columns of the page, with the prompts and seeds of the pictures that all the rows have."""
    from ddx.sampling.page import Column

    first = rows[0]
    together = [row for row in rows if (row.prompts, row.first_seed) == (first.prompts, first.first_seed) and row.drawn]
    count = min(len(row.drawn.paths) for row in together if row.drawn)
    numbers = [n for n in range(count) if all(row.drawn.paths[n].is_file() for row in together if row.drawn)]
    numbers = numbers[:num_prompts]
    columns = []
    for row in together:
        assert row.drawn is not None
        pictures = [_shown(row.drawn.paths[n]) for n in numbers]
        columns.append(Column(title=row.title, pictures=pictures, student=row.kind == "student"))
    names = [first.prompts[n] if first.prompts else (first.drawn.paths[n].name if first.drawn else "") for n in numbers]
    return columns, names, [first.first_seed + n for n in numbers]


def _shown(path: Path) -> Image:
    from PIL import Image

    from ddx.evaluation.picture_files import read_picture

    try:
        return Image.fromarray(read_picture(path))
    except DdxError:
        return Image.new("RGB", (64, 64), "grey")


def _lead(result: RealResult) -> str:
    protocol = result.facts["protocol"]
    text = f"{protocol['num_images']} pictures a row"
    if protocol["reference"]:
        text += (
            f", beside {protocol['reference_pictures'] or 'an unknown number of'} real ones of {protocol['reference']}"
        )
    return text + (f", by the protocol {protocol['protocol']}." if protocol["protocol"] else ".")
