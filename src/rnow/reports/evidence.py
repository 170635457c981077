"""What a report is made from: a run's folder, read once, nothing written. Pure from there on.

Journals are read for at most MAX_STEPS steps, evenly spread, first and last among them: a run of
weeks has more of them than a page could hold.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnow.chat.calling import Calling
from rnow.chat.compare import template_difference
from rnow.errors import RnowError, UsageError
from rnow.records import ScoredTrajectory
from rnow.runs.archive import journals
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import read_journal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_STEPS = 50

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a run says of itself."""

    name: str
    config: Line
    state: Line
    metrics: tuple[Line, ...]
    evaluations: tuple[Line, ...]
    template_difference: str | None = None  # None too where a model is not on this machine
    families: tuple[str, str] | None = None  # model_type of student and teacher, where both are

    def setting(self, key: str) -> Any:
        """Return setting("trainer.learning_rate"); None where the config has none."""
        value: Any = self.config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return value


def read_evidence(run: RunDirectory) -> Evidence:
    """Read all but the journals; raise UsageError where there is no run."""
    if not run.config_file.is_file():
        raise UsageError(f"{run.path} is not a run's folder; to see them: rnow status")
    config = run.read_config()
    models = [_folder(run, config, role) for role in ("model", "teacher")]
    student, teacher = models
    difference = families = None
    if student is not None and teacher is not None:
        difference = template_difference(student, teacher)
        families = (_family(student), _family(teacher))
    return Evidence(
        name=run.path.name,
        config=config,
        state=run.state(),
        metrics=tuple(run.read_metrics()),
        evaluations=tuple(run.read_evaluations()),
        template_difference=difference,
        families=families,
    )


def read_tokenizer(run: RunDirectory) -> "Tokenizer | None":
    """Return the student's, from its folder or from what the run made of it; None: neither is."""
    from tokenizers import Tokenizer

    for folder in (_folder(run, run.read_config(), "model"), run.model):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
    return None


def read_calling(run: RunDirectory) -> Calling | None:
    """Return how the student writes calls; None: its folder or its template does not tell."""
    folder = _folder(run, run.read_config(), "model") or run.model
    if not folder.is_dir():
        return None
    from rnow.chat.template import ChatTemplate

    try:
        return ChatTemplate.load(folder).calling
    except RnowError:  # a model that was changed since; the run is still there to be read
        return None


def steps_read(run: RunDirectory) -> list[Path]:
    """Return the journals that a report reads, in order."""
    found = journals(run.path / "trajectories")
    if len(found) <= MAX_STEPS:
        return found
    return [found[i * (len(found) - 1) // (MAX_STEPS - 1)] for i in range(MAX_STEPS)]


def read_trajectories(run: RunDirectory) -> Iterator[ScoredTrajectory]:
    """Yield what was scored in the steps that are read, one step in memory at a time."""
    for path in steps_read(run):
        yield from read_journal(path)


def _family(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text("utf-8"))["model_type"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _folder(run: RunDirectory, config: Line, role: str) -> Path | None:
    path = (config.get(role) or {}).get("path")
    folder = run.path.parent.parent / str(path)
    return folder if path and folder.is_dir() else None
