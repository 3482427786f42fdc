"""`ddx inspect`: show the contents of a store, a student or a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.data.config import InspectConfig

MANY_ROWS = 1_000_000  # from here on reading them all takes long enough to show progress


@click.command(
    epilog="""\b
Example:
  ddx inspect runs/data/laion-sana-600m-512.zarr
  ddx inspect runs/data/laion-sana-600m-512.zarr --report
  ddx inspect runs/data/laion-sana-600m-512.zarr --verify
  ddx inspect sana-tiny --json
"""
)
@click.argument("what", metavar="STORE|STUDENT|TEACHER", shell_complete=suggestions.what)
@config_options(InspectConfig, dry_run=False)
def command(invocation: Invocation, what: str) -> int:
    """Show the contents of a store, a student or a teacher.

    \b
    store    its rows by status with examples, its hosts, its teacher and sizes;
             it may be unfinished or only fetched
    student  the record of its run
    teacher  its facts, without loading its weights

    --report writes a page with statistics of a store. --verify checks all of a store against its checksums, and exits
    with 1 if a file is damaged.
    """
    from ddx.cli.console import emit, emit_json
    from ddx.data.fetched_rows import FOLDER

    config = invocation.build(InspectConfig)
    path = Path(what).expanduser()
    is_store = (path / "zarr.json").is_file()
    is_fetched = not is_store and (path / FOLDER).is_dir()
    if (config.report or config.verify) and not is_store:
        from ddx.errors import UsageError

        flag = "verify" if config.verify else "report"
        raise UsageError(f"{what} is not a store, and --{flag} is for one", hint=f"leave --{flag} out")
    verified = verify_store(path, invocation) if config.verify else {}
    if is_store:
        found = {**look_into_store(path, config, invocation), **verified}
    else:
        found = look_into_fetched(path) if is_fetched else look(what)
    if invocation.as_json:
        emit_json(found)
    elif is_store or is_fetched:
        show_store(found)
    else:
        for line in lines(found):
            emit(line)
    return 0


def verify_store(path: Path, invocation: Invocation) -> dict[str, Any]:
    """Return what --verify found. Of a damaged store, print the files and raise DdxError; it may be unreadable."""
    from ddx.cli.console import emit_json, emit_table
    from ddx.data.store import Store
    from ddx.data.verify import CURE, verify_all
    from ddx.errors import DdxError

    verified = verify_all(path, Store(path).num_parts, invocation.progress)
    found = {"verified": verified.to_dict()}
    if not verified.damaged:
        return found
    if invocation.as_json:
        emit_json({"path": str(path), **found})
    else:
        emit_table(["damaged", "because it"], [[damage.file, damage.reason] for damage in verified.damaged])
    raise DdxError(f"{path} is damaged, files: {len(verified.damaged)}", hint=CURE)


def look_into_store(path: Path, config: InspectConfig, invocation: Invocation) -> dict[str, Any]:
    """Return a store's summary and ledger, and with --report where the page is."""
    from ddx.data.inspection.ledger import COLUMNS, read_ledger
    from ddx.data.store import Store
    from ddx.progress import NullProgress

    store = Store(path)
    progress = invocation.progress if store.rows >= MANY_ROWS else NullProgress()
    found = {**store.summary(), **read_ledger(store.row_tables(COLUMNS, progress))}
    if config.report:
        from ddx.data.inspection.report import write_report

        folder = config.out or invocation.workspace.report_path(path.absolute().name.removesuffix(".zarr"))
        found["report"] = str(write_report(store, found, folder, progress))
    return found


def look_into_fetched(path: Path) -> dict[str, Any]:
    """Return the ledger of pictures that `--stage fetch` left, of which there is no store yet."""
    import pyarrow.parquet as pq

    from ddx.data.fetched_rows import count_statuses, fetched_tables
    from ddx.data.inspection.ledger import COLUMNS, read_ledger

    paths = fetched_tables(path)
    ok, failed = count_statuses(paths)
    return {
        "path": str(path),
        "rows": ok + sum(failed.values()),
        "ok": ok,
        "failed": failed,
        "stage": "fetched, not encoded",
        "parts": {"fetched": len(paths)},
        **read_ledger(pq.read_table(table, columns=list(COLUMNS)) for table in paths),
    }


def look(what: str) -> dict[str, Any]:
    """Return what is known of a student or a teacher. UsageError when it is neither."""
    from dataclasses import asdict

    from ddx.errors import UsageError
    from ddx.run_record import read_run
    from ddx.teachers.registry import TEACHERS

    path = Path(what).expanduser()
    record = read_run(path)
    if record is not None:
        return {"path": str(path), **record}
    if what in TEACHERS:
        return asdict(TEACHERS[what])
    if path.is_file():
        raise UsageError(f"{what} is a file and not a store", hint=f"`ddx precompute {what}` makes a store of it")
    raise UsageError(
        f"{what} is neither a store nor a student nor a teacher",
        hint="`ddx list stores`, `ddx list students` and `ddx list teachers` show what there is",
    )


def show_store(found: dict[str, Any]) -> None:
    """Print a store: the ledger of its rows, the cure, then its facts."""
    from ddx.cli.console import emit
    from ddx.data.inspection.ledger import cure

    failed, segments = found["failed"], found.get("segments", [])
    ledger = ("path", "rows", "ok", "failed", "complete", "stage", "parts")
    for line in lines({name: found[name] for name in ledger if name in found and name != "failed"}):
        emit(line)
    _show_failures(failed, found["ok"])
    _show_examples(found["examples"])
    _show_hosts(found["hosts"])
    if advice := cure(failed):
        emit(f"\n{advice}")
    if "stage" in found:
        emit("\nThe same `ddx precompute` command with --stage encode makes the store of them.")
    shown = (*ledger, "examples", "hosts", "report", "verified", "segments")
    facts = {key: value for key, value in found.items() if key not in shown}
    if "sources" in facts:
        facts["sources"] = ", ".join(found["sources"])
    if len(segments) > 1:
        del facts["sources"], facts["settings"]
    if facts:
        emit("")
    for line in lines(facts):
        emit(line)
    for segment in segments if len(segments) > 1 else []:
        name = f"rows {segment['first_row']} to {segment['first_row'] + segment['rows'] - 1}"
        for line in lines({name: {"sources": ", ".join(segment["sources"]), "settings": segment["settings"]}}):
            emit(line)
    if "verified" in found:
        emit(f"\nverified: {size(found['verified']['bytes'])}, nothing is damaged")
    if "report" in found:
        emit(f"\npage  {found['report']}")


def _show_failures(failed: Mapping[str, int], ok: int) -> None:
    from ddx.cli.console import emit, emit_table

    if not failed:
        emit("failed: none")
        return
    total = sum(failed.values())
    emit("")
    ordered = sorted(failed.items(), key=lambda item: -item[1])
    rows = [[status, count, f"{count / (ok + total):7.2%}"] for status, count in ordered]
    emit_table(["failed", "rows", "of all"], [*rows, ["in all", total, f"{total / (ok + total):7.2%}"]])


def _show_examples(examples: Mapping[str, list[dict[str, Any]]]) -> None:
    from ddx.cli.console import emit

    for status, rows in examples.items():
        emit(f"\n{status}")
        for row in rows:
            caption = f"  {_one_line(row['caption'])!r}" if row["caption"] else ""
            emit(f"  row {row['row']}  {row['key']}{caption}")
            for text in (row["detail"], row["source"]):
                if text:
                    emit(f"    {_one_line(text)}")


def _show_hosts(hosts: Mapping[str, Any]) -> None:
    from ddx.cli.console import emit, emit_table

    numbers = ("rows", "ok", "failed")
    rows = [[host["host"], *(host[key] for key in numbers), host["most"]] for host in hosts["worst"]]
    if others := hosts["others"]:
        name = "others" if others["hosts"] is None else f"{others['hosts']} others"
        rows.append([name, *(others[key] for key in numbers), ""])
    if rows:
        emit("")
        emit_table(["host", *numbers, "most often"], rows)
    if not hosts["exact"]:
        emit("There are so many hosts that the numbers of one may be too low.")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def lines(found: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return `key: value` lines, nested mappings indented, byte counts in words."""
    shown = []
    for key, value in found.items():
        if isinstance(value, dict):
            inner = {name: size(num) for name, num in value.items()} if key == "bytes" else value
            shown.append(f"{indent}{key}:{'' if inner else ' none'}")
            shown += lines(inner, indent + "  ")
        else:
            shown.append(f"{indent}{key}: {value}")
    return shown


def size(num_bytes: int) -> str:
    """Return a number of bytes as people say it."""
    value, units = float(num_bytes), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while value >= 1000 and unit != "PB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
