"""What shapes the bytes of a store, and the refusal to mix two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.errors import UsageError

WHOLE_FILE_BYTES = 64 << 20
END_BYTES = 1 << 20
UNSAID = "the default"  # of a setting that is recorded where it is another


def digest(*mappings: Mapping[str, Any]) -> str:
    """The hash that every commit record carries."""
    return hashlib.sha256(json.dumps(mappings, sort_keys=True).encode()).hexdigest()


def source_digest(files: Sequence[str], identities: Sequence[str | None], listings: Sequence[str | None]) -> str:
    """A hash of the input files, wherever they lie: whole small files, size and both ends of large ones.

    A parquet footer holds the place, size and extremes of every column chunk, so other contents change it. Of a folder
    of images: its listing, the names and sizes of what lies in it. Of an object in a store: its identity, and nothing
    is read.
    """
    total = hashlib.sha256()
    for file, identity, listing in zip(files, identities, listings, strict=True):
        if identity is not None:
            total.update(f"{identity};".encode())
            continue
        if listing is not None:
            total.update(listing.encode())
            continue
        path = Path(file)
        size = path.stat().st_size
        total.update(f"{size};".encode())
        with path.open("rb") as stream:
            if size > WHOLE_FILE_BYTES:
                total.update(stream.read(END_BYTES))
                stream.seek(size - END_BYTES)
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:32]


def refuse_mismatch(
    store: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, hint: str | None = None
) -> None:
    """Raise UsageError that names the first key in which an existing store differs from what is asked for."""
    usual = "give --out or --workspace for a second store, or repeat the settings; nothing was deleted"
    # A setting that only one of them has explains more than the number of rows that follows from it.
    one_sided = wanted.keys() ^ found.keys()
    for key in (*sorted(one_sided), *wanted):
        before, now = found.get(key, UNSAID), wanted.get(key, UNSAID)
        if before != now:
            raise UsageError(
                f"{store} exists and was made with {key} = {before}; this run has {now}",
                hint=hint or usual,
            )
