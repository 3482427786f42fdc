"""All trackers of a run as one. A tracker that fails is left out from then on, and said so: no run ends for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ddx.errors import first_line
from ddx.training.trackers.base import Tracked, Tracker

CLASSES = {
    "tensorboard": ("tensorboard", "TensorBoard"),
    "wandb": ("weights_and_biases", "WeightsAndBiases"),
    "mlflow": ("mlflow", "MLflow"),
    "jsonl": ("jsonl", "JSONLines"),
}


class Trackers:
    """Opened trackers. `say` takes one line for each that fails."""

    def __init__(self, names: Sequence[str], run: Tracked, say: Callable[[str], None]) -> None:
        self._open: dict[str, Tracker] = {}
        self._say = say
        for name in dict.fromkeys(names):
            module, kind = CLASSES[name]
            try:
                found = getattr(import_module(f"ddx.training.trackers.{module}"), kind)(run)
            except Exception as error:
                self._left_out(name, error)
            else:
                self._open[name] = found

    def line(self, line: Mapping[str, Any]) -> None:
        """Pass on the finite numbers of a line of metrics."""
        step = int(line["step"])
        values = {
            name: float(value)
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        if values:
            self._each(lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Pass on a picture."""
        self._each(lambda tracker: tracker.picture(step, name, path))

    def weights(self, step: int, path: Path) -> None:
        """Pass on the weights of the best step."""
        self._each(lambda tracker: tracker.weights(step, path))

    def close(self, *, finished: bool) -> None:
        """End this sitting of all."""
        self._each(lambda tracker: tracker.close(finished=finished))
        self._open.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._open[name]
                self._left_out(name, error)

    def _left_out(self, name: str, error: Exception) -> None:
        self._say(f"warning: tracking by {name} failed and is off from here on: {first_line(error)}")
