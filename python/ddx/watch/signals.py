"""The method's own signals between two looks, as the trainer logs them: losses, gradient norms, score gaps, shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_THE_RUN = frozenset(("step", "images", "lr", "seconds", "images_per_s", "peak_memory_bytes", "ode_distance"))


class Signals:
    """Means over the lines of the metrics since the last look; `skipped`, a count, is the last one."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Remember a line; values that are none, and what is of the run and not of its method, are left out."""
        for name, value in line.items():
            if name not in _OF_THE_RUN and isinstance(value, int | float):
                self._values.setdefault(name, []).append(float(value))

    def read(self) -> dict[str, float]:
        """Return the means by name, and begin anew."""
        values, self._values = self._values, {}
        return {
            name: found[-1] if name == "skipped" else sum(found) / len(found) for name, found in sorted(values.items())
        }
