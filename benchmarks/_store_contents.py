"""What is in a store that a process was killed over, and how that differs from what belongs there."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from stores import shard_bytes

COMMIT, NEXT = Path("_ddx/commit"), Path("_ddx/next")

Files = dict[str, bytes]


def contents(store: Path) -> Files:
    """Every file of a store but for locks and run.json, by its path: data, metadata, records, whatever was left."""
    records = {f"_ddx/{name}": data for name, data in shard_bytes(store / "_ddx").items() if not name.endswith(".lock")}
    return {**shard_bytes(store), **records}


def differing(store: Path, whole: Path) -> list[str]:
    """The files that one of two stores lacks, or that are not equal byte for byte."""
    one, other = contents(store), contents(whole)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def duplicated_rows(store: Path) -> int:
    """Rows that rows.parquet has more than once."""
    rows = pq.read_table(store / "rows.parquet", columns=["row"])["row"].to_pylist()
    return len(rows) - len(set(rows))


def records(store: Path) -> dict[int, bytes]:
    """The commit records by part."""
    folder = store / COMMIT
    names = [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return {int(name): (folder / name).read_bytes() for name in names}


def unfinished(store: Path) -> bool:
    """Whether a part is being written or replaced: a shard is newer than every record, or `_ddx/next` is not empty."""
    return _newest(store / "latents") > _newest(store / COMMIT) or _newest(store / NEXT) > 0


def _newest(folder: Path) -> int:
    """The time of the file in a folder that was written last."""
    times = [0]
    with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
        times += [entry.stat().st_mtime_ns for entry in os.scandir(folder)]
    return max(times)


@dataclass(frozen=True)
class Part:
    """A part that is done: its record and the bytes and times of its files; None: the file is not there."""

    record: bytes
    files: dict[str, bytes | None]
    times: dict[str, int]

    @classmethod
    def read(cls, store: Path, record: bytes) -> Part:
        """Read the files that a record names."""
        paths = {name: store / name for name in json.loads(record)["files"]}
        here = {name: path for name, path in paths.items() if path.is_file()}
        files = {name: here[name].read_bytes() if name in here else None for name in paths}
        return cls(record, files, {name: path.stat().st_mtime_ns for name, path in here.items()})


def read_parts(store: Path) -> dict[int, Part]:
    """Every part that has a record."""
    return {number: Part.read(store, record) for number, record in sorted(records(store).items())}


def lost(before: dict[int, Part], store: Path) -> list[int]:
    """The parts that had a record, and whose record or files are no longer those that they were, down to the times."""
    now = read_parts(store)
    return [number for number, part in before.items() if now.get(number) != part]


def lost_in_replacement(before: dict[int, Part], old: dict[int, Part], new: dict[int, Part], store: Path) -> list[int]:
    """The parts that are no longer what they were (`old`), not what they become (`new`), and not safely in between.

    In between, the next record is there, and each new file is in its place or waits below `_ddx/next`.
    """
    now, gone = read_parts(store), []
    for number, target in new.items():
        next_record = store / NEXT / f"{number}.json"
        if next_record.is_file():
            waiting = store / NEXT / str(number)
            held = next_record.read_bytes() == target.record and all(
                any(place.is_file() and place.read_bytes() == data for place in (waiting / name, store / name))
                for name, data in target.files.items()
            )
        else:
            allowed = [target] if before[number].record == target.record else [old[number], target]
            held = any(_same(now.get(number), part) for part in allowed)
        if not held:
            gone.append(number)
    return gone


def _same(part: Part | None, other: Part) -> bool:
    return part is not None and (part.record, part.files) == (other.record, other.files)
