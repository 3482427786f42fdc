"""A store is one or more segments: runs of parts, each of its own sources and settings, that were added at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddx.errors import DdxError

# Settings in which the segments of a store may differ: which rows there are, and what does not change what their
# latents mean.
OF_ONE_SEGMENT = (
    *("input", "input_rows", "columns", "where", "dedup", "limit", "shuffle", "verify_checksums"),
    *("batch_size", "max_pixels", "max_upscale", "tiff", "synthetic"),
)


@dataclass(frozen=True)
class Segment:
    """The parts of one `ddx precompute`; `digest` is that of its commit records, `rows` counts the input's."""

    first_part: int
    num_parts: int
    rows: int
    sources: list[str]
    settings: dict[str, Any]
    digest: str

    @property
    def parts(self) -> range:
        """Its parts. The last may be short: the next segment begins behind it, where a whole part would end."""
        return range(self.first_part, self.first_part + self.num_parts)

    def is_done(self, store: Path) -> bool:
        """Whether all its parts have records."""
        return all(record_path(store, part).is_file() for part in self.parts)


def record_path(store: Path, part: int) -> Path:
    """Where the commit record of a part is: the part is done when it is there."""
    return store / "_ddx" / "commit" / str(part)


def read_attributes(store: Path) -> dict[str, Any] | None:
    """The store's attributes, or None when there is no store. Raises DdxError for what is not one of ddx."""
    try:
        group = json.loads((store / "zarr.json").read_text(encoding="utf-8"))
        attributes = group["attributes"]["ddx"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DdxError(f"{store} is not a store of ddx", hint="give a folder that `ddx precompute` made") from error
    return dict(attributes)


def segments_of(attributes: Mapping[str, Any]) -> list[Segment]:
    """The segments of a store, in order; of one that nothing was added to there is one."""
    if "segments" in attributes:
        return [Segment(**segment) for segment in attributes["segments"]]
    names = ("num_parts", "rows", "sources", "settings", "digest")
    return [Segment(first_part=0, **{name: attributes[name] for name in names})]


def with_segments(attributes: Mapping[str, Any], segments: Sequence[Segment]) -> dict[str, Any]:
    """The attributes of a store that has these segments; `rows` counts input rows, not the gaps behind short parts."""
    return {
        **attributes,
        "rows": sum(segment.rows for segment in segments),
        "num_parts": segments[-1].parts.stop,
        "segments": [asdict(segment) for segment in segments],
    }


def num_row_places(segments: Sequence[Segment], part_rows: int) -> int:
    """The rows of the store's arrays, with those that are never there."""
    return segments[-1].first_part * part_rows + segments[-1].rows


def of_the_store(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all segments of a store share."""
    return {name: value for name, value in settings.items() if name not in OF_ONE_SEGMENT}
