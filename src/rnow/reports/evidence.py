"""What a report is made from: a run's folder, read once, nothing written. Pure from there on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnow.chat.calling import Calling
from rnow.chat.compare import template_difference
from rnow.errors import RnowError, UsageError
from rnow.runs.folder import RunDirectory
from rnow.runtime.atomic_files import folder_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
    plan: Line = field(default_factory=dict)  # what it was to take, when it began
    disk: Mapping[str, int] = field(default_factory=dict)  # bytes of what it has written

    def setting(self, key: str) -> Any:
        """Return setting("trainer.learning_rate"); None where the config has none."""
        value: Any = self.config
        for word in key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return value


def read_evidence(run: RunDirectory) -> Evidence:
    """Read all but the journals; raise UsageError where there is no run."""
    marks = (".lock", run.state_file.name, run.metrics_file.name)  # a project has a config too
    if not run.config_file.is_file() or not any((run.path / name).is_file() for name in marks):
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
        plan=run.read_plan(),
        disk={
            "disk_bytes": sum(
                map(folder_bytes, (run.path / "checkpoints", run.path / "policies", run.model))
            ),
            "journal_bytes": folder_bytes(run.path / "trajectories"),
        },
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


def _family(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text("utf-8"))["model_type"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _folder(run: RunDirectory, config: Line, role: str) -> Path | None:
    path = (config.get(role) or {}).get("path")
    folder = run.path.parent.parent / str(path)
    return folder if path and folder.is_dir() else None
