"""The trackers by name, and what each needs. Nothing is imported here: a run without a tracker pays nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from ddx.errors import UsageError

# the module that must be there, and the package that brings it
NEEDED: dict[str, tuple[str, str] | None] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "jsonl": None,
}
TRACKERS = tuple(NEEDED)


def require(names: Sequence[str]) -> None:
    """Raise UsageError, with the command that installs it, for the first tracker whose library is not here."""
    for name in names:
        needed = NEEDED[name]
        if needed is not None and importlib.util.find_spec(needed[0]) is None:
            raise UsageError(
                f"track = {name}: the package {needed[1]} is not installed",
                hint=f"pip install {needed[1]}, or pip install 'ddx[track]' for all trackers",
            )
