"""The cases of every operation, a file each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from ddx.bench.case import Case, Size
from ddx.errors import UsageError, nearest


def all_cases(size: Size) -> list[Case]:
    """Return the cases of every operation at this size, ordered by file."""
    found: list[Case] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        found += importlib.import_module(f"{__name__}.{module.name}").cases(size)
    return found


def chosen_cases(size: Size, operations: Sequence[str]) -> list[Case]:
    """Return the cases of these operations at this size, of all when none is named."""
    cases = all_cases(size)
    known = tuple(dict.fromkeys(case.operation for case in cases))
    for name in operations:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean `--operation {near}`?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no operation `{name}`", hint=hint)
    return [case for case in cases if not operations or case.operation in operations]
