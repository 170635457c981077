"""MLflow: the server of MLFLOW_TRACKING_URI; without one, the folder mlruns of the project.

To look at the folder: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri my-project/mlruns
"""

import os
import re
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from rnow.training.trackers.base import EvaluationReport, RunInfo

_MAX_PARAM_CHARS = 500


class MLflow:
    """One run of one experiment, which is named for the project."""

    def __init__(self, info: RunInfo) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._is_folder = not uri or uri.startswith(("file:", "/", "."))
        if not uri:
            # What needs no database is all that this folder is for.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (info.folder.parent.parent / "mlruns").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        if info.id is None:
            self._id = self._begin(info)
            info.keep_id(self._id)
        else:
            self._id = info.id
            self._client.update_run(self._id, status="RUNNING")

    def _begin(self, info: RunInfo) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or info.project
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        id: str = self._client.create_run(experiment, run_name=info.name).info.run_id
        params = [Param(key, str(value)[:_MAX_PARAM_CHARS]) for key, value in info.settings.items()]
        self._client.log_batch(id, params=params)
        return id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[
                Metric(self._name(name, metrics), value, now, step)
                for name, value in metrics.items()
            ],
        )

    def _name(self, name: str, metrics: Mapping[str, float]) -> str:
        """Return the name that MLflow takes; in its folders none is both a file and a folder."""
        before, _, last = name.rpartition("/")
        if self._is_folder and before in metrics:
            name = f"{before}.{last}"
        return re.sub(r"[^\w\-. :/]", "_", name)

    def log_evaluation(self, report: EvaluationReport) -> None:
        folder = f"eval/{report.step:06d}"
        columns = zip(report.columns, zip(*report.rows, strict=True), strict=True)
        table = {name: list(column) for name, column in columns}
        self._client.log_table(self._id, table, f"{folder}/figures.json")
        answers = "\n\n".join(
            f"{which}, {verdict}\n{said}" for which, verdict, said in report.transcripts
        )
        self._client.log_text(self._id, f"{report.note}\n\n{answers}", f"{folder}/transcripts.txt")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def open_tracker(info: RunInfo) -> MLflow:
    return MLflow(info)
