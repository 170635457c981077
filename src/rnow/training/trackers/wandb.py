"""Weights & Biases. WANDB_MODE=offline keeps a run on this machine until `wandb sync`.

Who is not logged in has an offline run too: a run of hours asks nobody for a key in its midst.
Neither code nor what else runs on this machine is told.
"""

import os
import secrets
from collections.abc import Mapping
from typing import Literal, cast

import wandb

from rnow.training.trackers.base import EvaluationReport, RunInfo


class WeightsAndBiases:
    """One run there; steps are its x axis, so that a step that is taken up again is told again."""

    def __init__(self, info: RunInfo) -> None:
        id = info.id or secrets.token_hex(6)
        info.keep_id(id)
        mode = os.environ.get("WANDB_MODE") or (
            "online" if wandb.login(prompt=False) else "offline"
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or info.project,
            name=info.name,
            id=id,
            resume="allow",
            mode=cast(Literal["online", "offline"], mode),
            dir=info.folder,
            config=dict(info.settings),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        if mode == "offline":
            info.say(f"wandb: offline; to upload the run: wandb sync {info.folder}/wandb/offline-*")
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def log_evaluation(self, report: EvaluationReport) -> None:
        figures = wandb.Table(columns=list(report.columns), data=report.rows)
        columns = ["prompt", "verdict", "transcript"]
        texts = wandb.Table(columns=columns, data=[list(one) for one in report.transcripts])
        tables = {"evaluation/figures": figures, "evaluation/transcripts": texts}
        self._run.log({"step": report.step, **tables})

    def close(self) -> None:
        self._run.finish()


def open_tracker(info: RunInfo) -> WeightsAndBiases:
    return WeightsAndBiases(info)
