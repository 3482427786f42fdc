"""The table of `ddx bench kernels`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddx.bench.row import BOTH
from ddx.cli.console import emit

NO_LIMIT = 1000
HEADINGS = ("operation", "mode", "size", "ours µs", "× eager", "× compile", "launches", "roofline", "error", "target")
WITHOUT_NUMBERS = ("operation", "mode", "size", "target")
GPU_CAPTION = (
    "µs and ratios: as a CUDA graph with cold data (as the host launches it). launches: ours (eager). roofline: the "
    "least time that the measured rates allow, over the graph's. "
)
ERROR_CAPTION = "error: ‖out − float64‖/‖float64‖, the worst output, gradient or tangent (plain torch's)."


def print_result(result: Mapping[str, Any], path: Path) -> None:
    """Print environment, roofline, one line a case, and what is missing and why; nothing of a long line is cut."""
    from rich.console import Console
    from rich.table import Table

    for text in header(result):
        emit(text)
    on_gpu = result["environment"]["device"] == "cuda"
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in WITHOUT_NUMBERS else "right", no_wrap=True)
    for row in result["rows"]:
        for line in lines(row):
            table.add_row(*line)
    widest = Console(width=NO_LIMIT).measure(table).maximum
    Console(file=sys.stdout, highlight=False, markup=False, width=widest).print(table)
    emit(f"\n{GPU_CAPTION if on_gpu else ''}{ERROR_CAPTION}")
    for text in remarks(result["rows"]):
        emit(text)
    emit(f"{len(result['rows'])} cases in {result['seconds']:.0f} s; {path}")


def header(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the machine, its rates, and what must be known before the numbers."""
    found, roofline = result["environment"], result["roofline"]
    versions = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("torch", "triton") if name in found["versions"]
    )
    if found["device"] == "cuda":
        start, after = found["clocks_at_start"], found["clocks_after_the_roofline"]
        yield (
            f"device    {found['name']}, {found['capability']}, {found['multiprocessors']} multiprocessors, "
            f"L2 {found['l2_bytes'] / 1e6:.0f} MB, {found['memory_bytes'] / 1e9:.0f} GB"
        )
        yield f"software  {versions}, CUDA {found['cuda']}, driver {start.get('driver', 'unknown')}"
        if start:
            yield (
                f"clocks    SM {start['sm_clock_mhz']} MHz at first, {after.get('sm_clock_mhz', '?')} behind the "
                f"roofline, {start['max_sm_clock_mhz']} at most; memory {start['memory_clock_mhz']} MHz; "
                f"{start['temperature_c']} °C, {start['power_limit_w']} W at most"
            )
    else:
        yield f"device    {found['name']}, {found['cores']} cores, {found['threads']} threads"
        yield f"software  {versions}"
    copied, size = roofline["copied_bytes"] / 1e6, roofline["product_size"]
    yield (
        f"roofline  copy {roofline['copy_bytes_per_s'] / 1e9:,.0f} GB/s (buffers of {copied:,.0f} MB); "
        f"{roofline['product_dtype']} product of {size}³ {roofline['product_flops_per_s'] / 1e12:.3g} TFLOP/s"
    )
    for note in result["notes"]:
        yield f"note      {note}"
    yield ""


def lines(row: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield one line of the table; of a backward case a second one for both passes. The judged one has the target."""
    name = [row["operation"], row["mode"], row["size"]]
    if not row["gate"]["passed"]:
        yield [*name, "–", "–", "–", "–", "–", _error(row), "wrong: not timed"]
        return
    for passes in ("", BOTH) if row["mode"] == "backward" else ("",):
        name[1] = "fwd + bwd" if passes else row["mode"]
        judged = passes == row["passes"]
        yield [
            *name,
            _both({kind: row["times"]["ours" + passes][kind]["us"] for kind in ("graph", "stream")}, ".1f"),
            *(_both(row["times_as_fast"].get(other + passes, {}), ".2f") for other in ("eager", "compile")),
            _launches(row["launches"]) if judged else "",
            f"{100 * row['roofline_share']:.0f} %" if judged and row["roofline_share"] else "–",
            _error(row) if judged else "",
            _target(row["missed"]) if judged else "",
        ]


def remarks(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is missing and why, and how far two measurements of one thing lie apart."""
    for row in rows:
        for failure in row["failures"]:
            yield f"{row['operation']} {row['mode']} {row['size']}: {failure}"
    spreads = [row["spread"] for row in rows if row["spread"] is not None]
    if spreads:
        yield f"two measurements of ours differ by {100 * max(spreads):.1f} % at most: smaller differences are noise"


def _target(missed: list[str] | None) -> str:
    if missed is None:
        return "–"
    return f"missed: {', '.join(missed)}" if missed else "met"


def _launches(launches: Mapping[str, int | None]) -> str:
    """Of ours, and of eager."""
    if launches.get("ours") is None:
        return "–"
    return f"{launches['ours']} ({launches.get('eager') or '–'})"


def _both(values: Mapping[str, float | None], form: str) -> str:
    """As a graph, and as launched in brackets; the one that there is, or a dash."""
    graph, stream = values.get("graph"), values.get("stream")
    if graph is None:
        return "–" if stream is None else format(stream, form)
    return f"{graph:{form}}" if stream is None else f"{graph:{form}} ({stream:{form}})"


def _error(row: Mapping[str, Any]) -> str:
    errors = row["gate"]["errors"]
    if not errors:
        return "–"
    if any(error["relative"] is None for error in errors):
        return "not finite"
    worst = max(errors, key=lambda error: error["relative"])
    if worst["eager_relative"] is None:
        return f"{worst['relative']:.1e} (not finite)"
    return f"{worst['relative']:.1e} ({worst['eager_relative']:.1e})"
