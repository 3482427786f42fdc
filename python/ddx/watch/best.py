"""The best look so far, and its weights: `watch/best.json` names the file of tensors, which is there before it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddx.errors import DdxError
from ddx.run_record import write_json

METRICS = ("distance", "ode_distance", "overall")
HIGHER_IS_BETTER = frozenset(("overall",))
FILE_NAME = "best.json"


def value_of(look: Mapping[str, Any], metric: str, steps: int) -> float | None:
    """Return the metric of a look, None where it has none: `overall` is of scenes alone."""
    value = look.get(metric) if metric == "ode_distance" else look["student"][str(steps)].get(metric)
    return None if value is None else float(value)


class Best:
    """The best by one metric, remembered in `folder` with its weights if `keep`."""

    def __init__(self, folder: Path, metric: str, *, keep: bool) -> None:
        self.folder, self.metric, self.keep = folder, metric, keep
        self.step: int | None = None
        self.value: float | None = None
        self.file: str | None = None
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
            if saved["metric"] == metric:
                self.step, self.value, self.file = int(saved["step"]), float(saved["value"]), saved.get("file")

    def is_better(self, value: float | None) -> bool:
        """Return whether a value is better than the best so far; None and what is not finite never is."""
        if value is None or value != value or abs(value) == float("inf"):
            return False
        if self.value is None:
            return True
        return value > self.value if self.metric in HIGHER_IS_BETTER else value < self.value

    def take(self, step: int, value: float, tensors: Mapping[str, Tensor]) -> None:
        """Remember a better one. Killed at any moment, either the former one or this one is whole."""
        file = f"best-{step:06d}.safetensors" if self.keep else None
        if file is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{file}.{os.getpid()}"
            save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary)
            os.replace(temporary, self.folder / file)
        write_json(self.folder / FILE_NAME, {"step": step, "metric": self.metric, "value": value, "file": file})
        self.step, self.value, self.file = step, value, file
        for old in (*self.folder.glob("best-*.safetensors"), *self.folder.glob(".best-*")):
            if old.name != file:
                old.unlink(missing_ok=True)

    @property
    def path(self) -> Path | None:
        """The file of the best weights; None where none are kept."""
        return None if self.file is None else self.folder / self.file

    def weights(self) -> dict[str, Tensor] | None:
        """Return the weights of the best, on the CPU; None where none are kept. DdxError for a damaged file."""
        path = self.path
        if path is None:
            return None
        try:
            found: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DdxError(f"the weights of the best step, {path}, cannot be read: {error}") from error
        return found

    def as_record(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        return {"step": self.step, "metric": self.metric, "value": self.value}
