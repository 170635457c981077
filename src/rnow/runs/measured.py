"""The steps that a project's runs have measured, for the plan of the next one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnow.config.settings import Config
from rnow.errors import CheckpointError
from rnow.plan.measured import Line, Measured
from rnow.runs.folder import RunDirectory

MAX_STEPS = 100  # of a whole run, if they can be: its last steps are not like its first
# With another model, or another way of rolling out, a rollout has other tokens.
_TOKENS = (
    "model.path",
    "rollout.max_turns",
    "rollout.max_tokens",
    "rollout.max_context_window",
    "rollout.max_tool_response",
    "rollout.reasoning_mode",
)
# Made in another way, it takes other seconds.
_SECONDS = (
    "model.tuning",
    "model.dtype",
    "teacher.path",
    "teacher.engine",
    "teacher.quantization",
    "teacher.url",
    "engine.kind",
    "engine.url",
    "engine.dtype",
    "rollout.concurrency",
    "tools",
    "resources",
    "trainer.activation_checkpointing",
    "trainer.max_policy_lag",
    "trainer.num_ranks",
)


def measured_steps(project: Path, config: Config, *, place: str) -> Measured:
    """Return the newest finished steps of runs with the same models and rollouts, newest last.

    Seconds are taken from runs at the same `place`, as the plan of a run names it.
    """
    wanted = config.model_dump(mode="json")
    runs = [RunDirectory(file.parent) for file in (project / "runs").glob("*/metrics.jsonl")]
    runs.sort(key=lambda run: run.metrics_file.stat().st_mtime, reverse=True)
    counted: list[Line] = []
    timed: list[Line] = []
    for run in runs:
        try:
            made_with, where = run.read_config(), run.read_plan().get("place", place)
            lines = [line for line in run.read_metrics() if not line.get("trainer/skipped")]
            if _is_alike(made_with, wanted, _TOKENS):
                counted = [*lines, *counted]
                if where == place and _is_alike(made_with, wanted, _SECONDS):
                    timed = [*(lines[1:] if len(lines) > 1 else lines), *timed]
        except (OSError, ValueError, AttributeError, CheckpointError):
            continue  # what is no run of this version tells nothing
    return Measured(counted=tuple(counted[-MAX_STEPS:]), timed=tuple(timed[-MAX_STEPS:]))


def _is_alike(config: Mapping[str, Any], wanted: Mapping[str, Any], keys: Sequence[str]) -> bool:
    def value(of: Mapping[str, Any], key: str) -> Any:
        section, _, name = key.partition(".")
        return (of.get(section) or {}).get(name) if name else of.get(section)

    return all(value(config, key) == value(wanted, key) for key in keys)
