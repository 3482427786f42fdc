"""The cases of every operation, a file each."""

from __future__ import annotations

import importlib
import pkgutil

from ddx.bench.case import Case, Size


def all_cases(size: Size) -> list[Case]:
    """Return the cases of every operation at this size, ordered by file."""
    found: list[Case] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        found += importlib.import_module(f"{__name__}.{module.name}").cases(size)
    return found
