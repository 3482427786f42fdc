"""MLflow, through its client: MLFLOW_TRACKING_URI names a server, else a database beside the student is written."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddx.training.trackers.base import PROJECT, Tracked, keep_id, kept_id


class MLflow:
    """One run of MLflow. Its identifier is kept, so a later sitting goes on with the same run."""

    def __init__(self, run: Tracked) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        run.folder.mkdir(parents=True, exist_ok=True)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        client: Any = MlflowClient(tracking_uri=server or f"sqlite:///{run.folder.resolve() / 'mlflow.db'}")
        self._client, self._metric = client, Metric
        identifier = kept_id(run.folder, "mlflow")
        if identifier is None:
            where = {} if server else {"artifact_location": (run.folder.resolve() / "artifacts").as_uri()}
            known = client.get_experiment_by_name(PROJECT)
            experiment = known.experiment_id if known else client.create_experiment(PROJECT, **where)
            identifier = client.create_run(experiment, run_name=run.name).info.run_id
            keep_id(run.folder, "mlflow", identifier)
            for key, value in run.settings.items():  # parameters may not change; a later sitting's are in settings.json
                client.log_param(identifier, key, str(value)[:500])
        else:
            client.update_run(identifier, status="RUNNING")
        self._id: str = identifier
        client.log_dict(identifier, dict(run.settings), "settings.json")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        now = int(time.time() * 1000)
        metrics = [self._metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, name: str, path: Path) -> None:
        """See :meth:`Tracker.picture`."""
        self._client.log_artifact(self._id, str(path), artifact_path=name)

    def weights(self, step: int, path: Path) -> None:
        """See :meth:`Tracker.weights`."""
        self._client.log_artifact(self._id, str(path), artifact_path="best")
        self._client.set_tag(self._id, "best_step", step)

    def close(self, *, finished: bool) -> None:
        """End this sitting; a run that is not finished may go on."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _allowed(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)
