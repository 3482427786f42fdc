"""Weights & Biases, through its library: WANDB_PROJECT, WANDB_MODE=offline and its other variables are its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddx.training.trackers.base import PROJECT, Tracked, keep_id, kept_id


class WeightsAndBiases:
    """One run of W&B. Its identifier is kept, so a later sitting goes on with the same run."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        identifier = kept_id(run.folder, "wandb") or secrets.token_hex(4)
        self._image, self._artifact = wandb.Image, wandb.Artifact
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=identifier,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
        )
        keep_id(run.folder, "wandb", identifier)
        # our own step: W&B's may not go back, and a run that goes on does some steps again
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, path: Path) -> None:
        """See :meth:`Tracker.picture`."""
        self._run.log({name: self._image(str(path)), "step": step})

    def weights(self, step: int, path: Path) -> None:
        """See :meth:`Tracker.weights`."""
        artifact = self._artifact(f"{self._run.id}-best", type="model", metadata={"step": step})
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, *, finished: bool) -> None:
        """End this sitting; a run that is not finished may go on under the same identifier."""
        self._run.finish(exit_code=0 if finished else 1)
