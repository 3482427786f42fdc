"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from ddx.errors import UsageError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B?)\s*", re.IGNORECASE)


def parse_amount(text: str) -> int:
    """Return the bytes of `24GB`, `24G`, `22.5GiB` or `400MB`. UsageError for another text."""
    found = _AMOUNT.fullmatch(text)
    if found is None or float(found[1]) == 0.0:
        raise UsageError(f"memory = {text!r} is no amount of memory", hint="for example --memory 24GB, or 22.5GiB")
    unit = found[2].upper()
    return int(float(found[1]) * _UNITS[unit if unit.endswith("B") else f"{unit}B"])


def in_gb(num_bytes: float) -> str:
    """Return bytes as cards and `--memory` count them: 246 MB, 5.4 GB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def in_gib(num_bytes: float) -> str:
    """Return bytes as GiB with one digit, two below one."""
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1.0 else f"{gib:.2f} GiB"
