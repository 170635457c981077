"""The steps that a project's runs have measured, for the plan of the next one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnow.config.settings import Config
from rnow.errors import CheckpointError
from rnow.runs.folder import RunDirectory

MAX_STEPS = 10
# Another model, another way of rolling out: such steps say nothing of the time of these.
_SAME = (
    "model.path",
    "model.tuning",
    "model.dtype",
    "teacher.path",
    "teacher.engine",
    "teacher.quantization",
    "engine.kind",
    "rollout.max_turns",
    "rollout.max_tokens",
    "rollout.max_context_window",
    "rollout.max_tool_response",
    "rollout.reasoning_mode",
    "trainer.activation_checkpointing",
)


def measured_steps(project: Path, config: Config) -> list[dict[str, Any]]:
    """Return the newest finished steps of runs with the same models and rollouts, newest last.

    Where there are several, a process's first is left out: it was slow, for it was the first.
    """
    wanted = config.model_dump(mode="json")
    runs = [RunDirectory(file.parent) for file in (project / "runs").glob("*/metrics.jsonl")]
    runs.sort(key=lambda run: run.metrics_file.stat().st_mtime, reverse=True)
    found: list[dict[str, Any]] = []
    for run in runs:
        try:
            if _is_alike(run.read_config(), wanted):
                lines = [line for line in run.read_metrics() if not line.get("trainer/skipped")]
                found = [*(lines[1:] if len(lines) > 1 else lines), *found]
        except (OSError, ValueError, AttributeError, CheckpointError):
            continue  # what is no run of this version tells nothing
    return found[-MAX_STEPS:]


def _is_alike(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    def value(of: Mapping[str, Any], key: str) -> Any:
        section, _, name = key.partition(".")
        return (of.get(section) or {}).get(name)

    return all(value(config, key) == value(wanted, key) for key in _SAME)
