"""The seam to a program that shows many runs: numbers of a step, tables and texts of an evaluation.

To add one: a module here with an `open_tracker(RunInfo) -> Tracker`, a row in REMEDIES, its name in
config/types.py and an extra in pyproject.toml; it is named as the package that it needs. A tracker
may raise whatever it likes, and may be slow: it is called in a thread of its own, and left out once
it has failed (reports.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rnow.config.keys import flat_values
from rnow.config.source import SECRET_KEYS

Table = list[list[str | float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What a tracker is told of one evaluation: nothing in its texts acts on what shows them.

    EvaluationReport(step=5, columns=("prompts", "accuracy", …), rows=[["all", 0.5, …]],
                     transcripts=[["line 3", "right", "── prompt · 12 tokens …"]], note="2 of 9 …")
    """

    step: int
    columns: tuple[str, ...]
    rows: Table
    transcripts: list[tuple[str, str, str]]  # which prompt, right or wrong, what was said
    note: str  # how many transcripts there are, and which were left out


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Which run it is that a tracker goes on with.

    `id` is what the tracker called it when it began, None where it begins now: then the tracker
    tells `keep_id`. Numbers of `first_step` and later are told again.
    """

    project: str
    name: str
    folder: Path  # the run's
    first_step: int
    settings: Mapping[str, str | float | bool | None]  # by their dotted keys
    id: str | None
    keep_id: Callable[[str], None]
    say: Callable[[str], None]  # to the user


class Tracker(Protocol):
    """One program's record of one run."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_evaluation(self, report: EvaluationReport) -> None: ...

    def close(self) -> None: ...


REMEDIES: Mapping[str, str] = {
    "tensorboard": "is there room on the disk, and a right to write?",
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "does the server of MLFLOW_TRACKING_URI answer, and does it have the run?",
}


def flat_settings(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """Return settings by their dotted keys. What servers are started and reached with stays here:
    a key of an API may be among it."""
    flat: dict[str, str | float | bool] = {}
    for key, value in flat_values(config).items():
        match value:
            case str() | float() | int():
                flat[key] = value
            case list() if key not in SECRET_KEYS:
                flat[key] = ", ".join(map(str, value))
    return flat
