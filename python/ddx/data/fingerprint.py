"""What shapes the bytes of a store, and the refusal to mix two of them."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.errors import UsageError

WHOLE_FILE_BYTES = 64 << 20
FOOTER_BYTES = 1 << 20


def digest(*mappings: Mapping[str, Any]) -> str:
    """The hash that every commit record carries."""
    return hashlib.sha256(json.dumps(mappings, sort_keys=True).encode()).hexdigest()


def source_digest(sources: Sequence[str]) -> str:
    """A hash of the input files, wherever they lie: whole small files, size and footer of large ones.

    A parquet footer holds the place, size and extremes of every column chunk, so other contents change it.
    """
    total = hashlib.sha256()
    for path in _files(sources):
        size = path.stat().st_size
        total.update(f"{size};".encode())
        with path.open("rb") as file:
            if size > WHOLE_FILE_BYTES:
                file.seek(size - FOOTER_BYTES)
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:32]


def refuse_mismatch(store: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UsageError that names the first key in which an existing store differs from what is asked for."""
    for key in dict.fromkeys((*wanted, *found)):
        if found.get(key) != wanted.get(key):
            raise UsageError(
                f"{store} exists and was made with {key} = {found.get(key)}; this run has {wanted.get(key)}",
                hint="give --out or --workspace for a second store, or repeat the settings; nothing was deleted",
            )


def _files(sources: Sequence[str]) -> Iterator[Path]:
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*.parquet") if file.is_file())
        elif path.is_file():
            yield path
        else:
            yield from sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
