"""Which stores may be merged, and what the merged one says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.data.segments import Segment, of_the_store, with_segments
from ddx.data.store import Store
from ddx.errors import UsageError

# Attributes in which stores may differ; the teacher's name and folder do not matter where its fingerprint is equal.
OF_ONE_STORE = ("teacher", "teacher_source", "settings", "digest", "rows", "num_parts", "sources", "segments")


def merged_attributes(sources: Sequence[Store], out: Path) -> dict[str, Any]:
    """What the merged store says of itself. Raises UsageError naming what does not fit."""
    if len(sources) < 2:
        raise UsageError("there is nothing to merge", hint="ddx merge A.zarr B.zarr --out C.zarr takes two or more")
    if out.resolve() in (source.path.resolve() for source in sources):
        raise UsageError(f"{out} is one of the stores to merge", hint="give another place with --out")
    first = sources[0]
    segments: list[Segment] = []
    for source, shift in zip(sources, first_parts(sources), strict=True):
        _refuse_misfit(first, source)
        segments += [dataclasses.replace(of, first_part=of.first_part + shift) for of in source.segments]
    digests = [segment.digest for segment in segments]
    for segment in segments:
        if digests.count(segment.digest) > 1:
            raise UsageError(
                f"the same rows of {', '.join(segment.sources)} are in the stores twice", hint="give each store once"
            )
    return with_segments(first.attributes, segments)


def first_parts(sources: Sequence[Store]) -> Iterator[int]:
    """The first part of each store in the merged one."""
    first = 0
    for source in sources:
        yield first
        first += source.num_parts


def _refuse_misfit(first: Store, other: Store) -> None:
    def refuse(name: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            raise UsageError(
                f"{other.path} does not fit {first.path}: its {name} is {found}, not {wanted}",
                hint="`ddx precompute … --append` adds the rows of one to the other by encoding them again",
            )

    pairs = [(first.fingerprint, other.fingerprint)]
    pairs.append((of_the_store(first.attributes["settings"]), of_the_store(other.attributes["settings"])))
    pairs.append((_of_all(first.attributes), _of_all(other.attributes)))
    pairs.append((_layout(first.path), _layout(other.path)))
    for wanted, found in pairs:
        for name in (*sorted(wanted.keys() ^ found.keys()), *wanted):
            refuse(name, wanted.get(name), found.get(name))


def _of_all(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in OF_ONE_STORE}


def _layout(store: Path) -> dict[str, Any]:
    """Shape and type of an entry of every array."""
    nodes = json.loads((store / "zarr.json").read_text(encoding="utf-8"))["consolidated_metadata"]["metadata"]
    return {
        f"array {path}": {"shape": node["shape"][1:], "type": node["data_type"], "chunks": node["codecs"]}
        for path, node in nodes.items()
        if node["node_type"] == "array"
    }
