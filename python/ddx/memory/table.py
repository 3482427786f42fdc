"""A footprint as a table: whose memory it is, and for what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ddx.memory.amount import in_gib
from ddx.memory.fake_run import BACKWARD, Footprint

_SMALL = 0.005  # of the peak: what is less is said to be others


def by_owner(footprint: Footprint) -> dict[str, dict[str, int]]:
    """Return the bytes at the peak by owner and kind; "" owns what belongs to no network."""
    found: dict[str, dict[str, int]] = {}
    for (owner, kind), size in footprint.peak.by_use.items():
        owner = "" if kind == BACKWARD else owner
        found.setdefault(owner, {}).setdefault(kind, 0)
        found[owner][kind] += size
    return found


def lines(footprint: Footprint) -> list[str]:
    """Return the lines of the table: a row a network, a column a kind, in GiB; kinds and rows by size."""
    owners = by_owner(footprint)
    by_kind: dict[str, int] = {}
    for (_, kind), size in footprint.peak.by_use.items():
        by_kind[kind] = by_kind.get(kind, 0) + size
    kinds = _by_size(by_kind, lambda kind: by_kind[kind])
    names = _by_size(owners, lambda name: sum(owners[name].values()))
    least = _SMALL * footprint.peak.num_bytes
    kinds = [kind for kind in kinds if by_kind[kind] >= least]
    names = [name for name in names if sum(owners[name].values()) >= least]
    rows = [["GiB", *kinds, "together"]]
    for name in names:
        cells = [owners[name].get(kind, 0) for kind in kinds]
        rows.append([name.replace("_", " ") or "others", *map(_cell, cells), _cell(sum(owners[name].values()))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def headline(footprint: Footprint) -> str:
    """Return the peak and when it is, in one line."""
    owner, kind = footprint.peak.during
    when = f"in the {kind} of {owner.replace('_', ' ').replace('+', ' and ')}" if owner else f"in the {kind}"
    return f"{in_gib(footprint.peak.num_bytes)} at the peak, {when}"


def _cell(size: int) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 / 200 else ""


def _by_size(names: Iterable[str], size: Callable[[str], int]) -> list[str]:
    return sorted(names, key=size, reverse=True)
