"""Owns a run at MLflow, at MLFLOW_TRACKING_URI: the same one after each resume."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from ....pipeline.storage import Location
from .tracked import Run, kept_run

#: Characters of a parameter that MLflow's stores take.
_LONGEST = 500

#: Students of one process begin at the same moment, and a store of files would make an experiment for each.
_ONE_AT_A_TIME = threading.Lock()


class MLflow:
    """A run of MLflow's, by its client: nothing in this process is changed, and several runs do not meet."""

    def __init__(self, run: Run, folder: Location) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        begun: list[str] = []

        def begin() -> dict[str, str]:
            with _ONE_AT_A_TIME:
                experiment = _experiment(self._client, run.project)
            tags = {"group": run.group} if run.group else {}
            begun.append(self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id)
            return {"experiment": run.project, "id": begun[0]}

        self._id = kept_run(folder, "mlflow", begin)["id"]
        if begun:
            values: dict[str, Any] = {
                name: value if isinstance(value, str) else json.dumps(value) for name, value in run.about.items()
            }
            self._client.log_batch(self._id, params=[Param(name, value[:_LONGEST]) for name, value in values.items()])
        else:
            self._client.update_run(self._id, status="RUNNING")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


def _experiment(client: Any, name: str) -> str:
    """The id of an experiment, which is made where there is none: perhaps by another process at this moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
