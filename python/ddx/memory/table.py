"""A footprint in lines: whose memory it is, and for what."""

from __future__ import annotations

from ddx.memory.amount import in_gib
from ddx.memory.fake_run import BACKWARD, Footprint

_SMALL = 0.02  # of the peak: what is less is left out


def by_owner(footprint: Footprint) -> dict[str, dict[str, int]]:
    """Return the bytes at the peak by owner and kind; "" owns what belongs to no network."""
    found: dict[str, dict[str, int]] = {}
    for (owner, kind), size in footprint.peak.by_use.items():
        owner = "" if kind == BACKWARD else owner
        found.setdefault(owner, {}).setdefault(kind, 0)
        found[owner][kind] += size
    return found


def lines(footprint: Footprint) -> list[str]:
    """Return a line for each network, the largest first: what it holds at the peak, together and by kind, in GiB."""
    owners, least = by_owner(footprint), _SMALL * footprint.peak.num_bytes
    found = []
    for owner, uses in sorted(owners.items(), key=lambda item: -sum(item[1].values())):
        kinds = sorted((kind for kind, size in uses.items() if size >= least), key=lambda kind: -uses[kind])
        if kinds:
            parts = ", ".join(f"{kind} {uses[kind] / 2**30:.2f}" for kind in kinds)
            found.append(f"{owner.replace('_', ' ') or 'others':14}{sum(uses.values()) / 2**30:6.2f}  {parts}")
    return found


def looks_line(footprint: Footprint) -> str | None:
    """Return what looks and grids take at their peak, between steps; None where they are not counted."""
    if footprint.looks is None:
        return None
    owner, kind = footprint.looks.during
    holds = footprint.looks.num_bytes > footprint.peak.num_bytes
    beside = "; more than a step" if holds else ""
    return f"{'looks':14}{footprint.looks.num_bytes / 2**30:6.2f}  between steps, {kind} by {owner}{beside}"


def headline(footprint: Footprint) -> str:
    """Return the peak and when it is, in one line."""
    owner, kind = footprint.peak.during
    when = f"in the {kind} of {owner.replace('_', ' ').replace('+', ' and ')}" if owner else f"in the {kind}"
    beside = f", and {in_gib(footprint.host_bytes)} of the host's memory" if footprint.host_bytes else ""
    return f"{in_gib(footprint.peak.num_bytes)} at the peak, {when}{beside}"
