"""May this run go on with that config? A change since it began is free, taken over, or refused.

The resolved config of a run is saved with it. Keys that only say how fast or how visibly it runs
may change at will; learning rate and its like are taken over and said; everything else would make
one run out of two, so it is refused with the difference named.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnow.config.keys import flat_values
from rnow.config.settings import Config
from rnow.errors import CheckpointError
from rnow.rollout.project_pages import store_fingerprint
from rnow.runs.folder import RunDirectory

FREE = frozenset(
    {
        "trainer.save_step",
        "trainer.keep_last",
        "trainer.checkpoint_minutes",
        "trainer.keep_trajectories_gb",
        "trainer.eval_step",
        "trainer.report_to",
        "trainer.max_time_s",
        "trainer.max_dropped",
        "trainer.max_tokens_per_micro_batch",
        "trainer.activation_checkpointing",
        "trainer.num_ranks",
        "trainer.shard_weights",
        "trainer.rank_timeout_s",
        "rollout.concurrency",
        "teacher.concurrency",
        "teacher.url",
        "teacher.replicas",
        "resources",
        "resources.cluster",
        "resources.student.gpus",
        "resources.teacher.gpus",
        "resources.trainer.gpus",
        "engine.python",
        "engine.url",
        "engine.replicas",
        "engine.gpu_memory_utilization",
        "engine.start_timeout_s",
        "engine.request_timeout_s",
        "engine.probe_tolerance",
        "tools.workers",
        "tools.concurrency",
        "tools.env",
        "browser.contact",
        "browser.executable",
        "browser.ttl_days",
        "data.grader",
        "data.val_file",
    }
)

TAKEN_OVER = frozenset(
    {
        "trainer.learning_rate",
        "trainer.weight_decay",
        "trainer.warmup_steps",
        "trainer.schedule",
        "trainer.max_grad_norm",
        "trainer.num_epochs",
        "trainer.max_steps",
        "algorithm.kl_penalty_coef",
        "algorithm.kl_clip",
        "algorithm.kl_discount",
        "rollout.tool_timeout",
        "rollout.mcp_url",
        "rollout.rollout_timeout",
        "browser.allow_hosts",
        "engine.kind",
        "engine.args",
        "teacher.engine",
        "teacher.args",
        "browser.render_hosts",
        "browser.store",
    }
)


_CODE = ("tools.py", "rewards.py")  # may change in a run, which is told


def check_not_lost(run: RunDirectory) -> None:
    """Raise CheckpointError where steps are done, and the checkpoint that holds them is gone.

    A journal is compressed once a checkpoint holds its step.
    """
    if run.latest.exists() or not any((run.path / "trajectories").glob("[0-9]*.jsonl.zst")):
        return
    raise CheckpointError(
        f"{run.latest} is gone, and steps of this run are done; if a numbered one is left beside "
        "it, copy that there, or begin again with --fresh"
    )


def check_resumable(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each change that is taken over; raise CheckpointError for the others."""
    changed = _changed(before, now)
    refused = {key: values for key, values in changed.items() if key not in TAKEN_OVER}
    if refused:
        raise CheckpointError(
            f"the unfinished run was made with another config:{_differences(refused)}\n"
            "Put these back to go on with it, or use --fresh to begin another run"
        )
    return tuple(f"{key}: {was!r} becomes {is_!r}" for key, (was, is_) in changed.items())


def check_finished(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a finished run was made with other settings than are given now.

    A setting that came into being since then is no difference.
    """
    known = flat_values(before)
    changed = {key: values for key, values in _changed(before, now).items() if key in known}
    if changed:
        raise CheckpointError(
            f"nothing was trained: {run} is finished, and was made with another config:"
            f"{_differences(changed)}\n"
            "To train with these settings, use --fresh, which begins another run; to train under a "
            "name of its own, --name NAME"
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return key -> (value in `before`, value in `now`) of all that are not free to change."""
    was, is_ = flat_values(before), flat_values(now)
    return {
        key: (was.get(key), is_.get(key))
        for key in sorted((was.keys() | is_.keys()) - FREE)
        if was.get(key) != is_.get(key)
    }


def _differences(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "".join(
        f"\n  {key}: the run has {was!r}, now given is {is_!r}"
        for key, (was, is_) in changed.items()
    )


def fingerprints(directory: Path, config: Config, *, tokenizer: Path) -> dict[str, str]:
    """Return a hash of each file, besides the config, on which a run's numbers depend.

    Where pages are replayed, their store is one of them.
    """
    files = {
        "data.train_file": directory / config.data.train_file,
        **{name: directory / name for name in _CODE},
        "tokenizer.json": tokenizer / "tokenizer.json",
    }
    hashes = {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in files.items()
        if file.is_file()
    }
    pages = store_fingerprint(config, directory)
    return hashes if pages is None else {**hashes, "browser.store": pages}


def check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse prompts or ids that are no longer those of the run; tell of other code."""
    changed = sorted(name for name in before if before[name] != now.get(name))
    refused = [name for name in changed if name not in _CODE]
    if refused:
        raise CheckpointError(
            f"{' and '.join(refused)} changed since the unfinished run began; put the old content "
            "back to go on with it, or use --fresh to begin another run"
        )
    return tuple(f"{name} has changed since the run began" for name in changed)
