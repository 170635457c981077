"""Keys of config.yml that are not settings: what each was, will be, or why it is refused.

Files written for the hosted service load here. What has no meaning on one's own machine is ignored
with a line that says so; what has one is translated into the setting of today; what would silently
train something else is refused. docs/configuration.md lists these tables.
"""

from rnow.config.keys import settings_by_key
from rnow.config.source import ConfigSource, show
from rnow.errors import ConfigError, Problem

_RUNS_ARE_LOCAL = "runs are local"
_NO_DATASET_IDS = "the prompts are the file data.train_file"

IGNORED_KEYS = {
    "project_id": _RUNS_ARE_LOCAL,
    "description": _RUNS_ARE_LOCAL,
    "organization_id": _RUNS_ARE_LOCAL,
    "dataset_id": _NO_DATASET_IDS,
    "dataset_name": _NO_DATASET_IDS,
    "evals": "trainer.eval_step and rnow eval evaluate on data.val_file",
    "data.val_split": "data.val_file names a file of held-out prompts",
    "model.name": "rnow run --name names a run and its model",
    "model.description": _RUNS_ARE_LOCAL,
    "model._resolvedCheckpointPath": _RUNS_ARE_LOCAL,
    "model._resolvedSamplerCheckpointPath": _RUNS_ARE_LOCAL,
    "model._baseModelName": _RUNS_ARE_LOCAL,
    "teacher.agentic": "a run uses tools exactly when tools.py or rollout.mcp_url is there",
    "trainer.max_billing": "runs are local and cost nothing; trainer.max_time_s limits a run",
}

TRANSLATED_KEYS = {
    "project_name": "the run's folder under runs/, unless rnow run --name names it",
    "rollout.thinking_mode": "rollout.reasoning_mode, with easy as low and hard as high",
    "rollout.max_tool_response_chars": "a cap in characters, beside rollout.max_tool_response",
    "trainer.save_step: 0": "trainer.save_step: -1",
}

# The one value of each that leaves the sampling distribution alone.
_SAMPLING_KEYS = {"temperature": (1,), "top_p": (1,), "top_k": (-1, 0)}

_THINKING_TO_REASONING = {
    "disabled": "disabled",
    "easy": "low",
    "medium": "medium",
    "hard": "high",
}


def refuse_flat_form(source: ConfigSource) -> None:
    """Raise ConfigError on a `params:` block, the form without sections: nothing of it loads."""
    params = source.get("params")
    if not source.has("params"):
        return
    moved = ""
    if isinstance(params, dict):
        homes = {key.rpartition(".")[2]: key for key in reversed(settings_by_key())}
        known = [f"{name} is now {homes[name]}" for name in params if name in homes]
        moved = f" ({', '.join(known)})" if known else ""
    message = (
        "params is the flat form of old files and is no longer read; "
        f"move its keys into the sections data, model, teacher, algorithm, rollout, trainer{moved}"
    )
    file, line = source.place("params")
    raise ConfigError(problems=[Problem(file=file, line=line, key="params", message=message)])


def take_project_name(source: ConfigSource) -> str | None:
    """Take project_name out of `source`: no setting, but what the user calls the run."""
    key = "project_name"
    name = source.pop(key) if source.has(key) else None
    return None if name is None else str(name)


def translate_old_keys(source: ConfigSource) -> None:
    """Take every other key of the tables above out of `source`, with a warning or an error each."""
    for key, reason in IGNORED_KEYS.items():
        if source.has(key):
            source.warn(key, f"{key} is ignored: {reason}")
            source.pop(key)
    _refuse_other_sampling(source)
    _translate_thinking_mode(source)
    _translate_save_step(source)
    if source.get("rollout.max_tool_response_chars") is not None:
        source.report(
            "rollout.max_tool_response_chars",
            "rollout.max_tool_response_chars is an old key, honoured in characters; "
            "rollout.max_tool_response counts tokens",
            severity="warning",
        )


def _refuse_other_sampling(source: ConfigSource) -> None:
    sections = [name for name, value in source.values.items() if isinstance(value, dict)]
    for prefix in ("", *(f"{name}." for name in sections)):
        for name, harmless in _SAMPLING_KEYS.items():
            key = prefix + name
            if not source.has(key):
                continue
            value = source.pop(key)
            if value is None or value in harmless:
                source.warn(key, f"{key} is ignored: it is always so")
            else:
                source.report(
                    key,
                    f"{key} is {show(value)}; remove it: rollouts are sampled at temperature 1, "
                    "top-p 1 and without top-k, because the log-probabilities of student and "
                    "teacher are compared at temperature 1",
                )


def _translate_thinking_mode(source: ConfigSource) -> None:
    old, new = "rollout.thinking_mode", "rollout.reasoning_mode"
    if not source.has(old):
        return
    mode = source.pop(old)
    if source.get(new) is not None:
        source.warn(old, f"{old} is ignored: {new} is set")
    elif mode in _THINKING_TO_REASONING:
        source.set(new, _THINKING_TO_REASONING[mode])
        source.warn(old, f"{old} is an old key, read as {new}: {source.get(new)}")
    elif mode is not None:
        known = ", ".join(_THINKING_TO_REASONING)
        source.report(old, f"{old} is {show(mode)}; use {new} (the old values were {known})")


def _translate_save_step(source: ConfigSource) -> None:
    key = "trainer.save_step"
    value = source.get(key)
    if value in (0, "0") and value is not False:
        source.set(key, -1)
        source.warn(key, f"{key} is 0, which was an old way to say -1: only the end is saved")
