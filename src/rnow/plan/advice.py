"""Which change makes a workload fit: found by planning again with it, so that none is a guess."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rnow.plan.devices import Gpu
from rnow.plan.layout import find_plan
from rnow.plan.records import Plan
from rnow.plan.workload import Workload, gives_gpus, weights_are_cut

_WINDOW_STEP = 1024
_MIN_WINDOW_SHARE = 4  # a window below a quarter of what was asked for is another project
_MEMORY_STEPS_GB = range(4, 132, 4)
_MAX_GPUS = 8

Settings = Mapping[str, Any]  # by their keys in config.yml


def advise(workload: Workload, gpus: Sequence[Gpu]) -> list[str]:
    """Return the changes each of which alone makes it fit: settings, then GPUs.

    Where no single setting does, a line is of several that do so together.
    """
    switches = ({key: value} for key, value in _switches(workload).items())
    changes: list[Settings] = [each for each in switches if _fits_with(each, workload, gpus)]
    shorter = _shorter(workload, gpus)
    # Two settings are no advice where one does.
    if shorter and not (changes and len(shorter) > 1):
        changes.append(shorter)
    if ranks := _more_ranks(workload, gpus):
        changes.append(ranks)
    texts = [_text(change) for change in changes or _together(workload, gpus)]
    return texts + _other_gpus(workload, gpus)


def _switches(workload: Workload) -> dict[str, Any]:
    """Return the settings that have one better value, with it."""
    config, window = workload.config, workload.max_context_window
    better: dict[str, Any] = {}
    if config.engine.gpu_memory_utilization is not None:
        better["engine.gpu_memory_utilization"] = None
    if config.model.tuning == "full":
        better["model.tuning"] = "lora"
    if workload.num_ranks > 1 and not weights_are_cut(config):
        better["trainer.shard_weights"] = True
    if config.trainer.activation_checkpointing is False:
        better["trainer.activation_checkpointing"] = True
    if config.trainer.max_tokens_per_micro_batch > window:
        better["trainer.max_tokens_per_micro_batch"] = window
    teacher = workload.teacher
    quantized = workload.teacher_settings.quantization or (teacher and teacher.quantization)
    if workload.teacher_engine == "vllm" and teacher is not None and quantized is None:
        better["teacher.quantization"] = "fp8"
    return better


def _shorter(workload: Workload, gpus: Sequence[Gpu]) -> Settings:
    """Return the longest window that fits, micro-batches no longer; nothing where none does."""
    micro_batch = workload.config.trainer.max_tokens_per_micro_batch
    first = (workload.max_context_window - 1) // _WINDOW_STEP * _WINDOW_STEP
    last = max(_WINDOW_STEP, workload.max_context_window // _MIN_WINDOW_SHARE)
    for window in range(first, last - 1, -_WINDOW_STEP):
        change = {"rollout.max_context_window": window}
        if _fits_with(change, workload, gpus):
            return change
        change["trainer.max_tokens_per_micro_batch"] = window
        if micro_batch > window and _fits_with(change, workload, gpus):
            return change
    return {}


def _more_ranks(workload: Workload, gpus: Sequence[Gpu]) -> Settings:
    """Return the fewest ranks over which the student fits in parts; nothing where none do."""
    if workload.alone is not None or gives_gpus(workload.config):
        return {}
    for count in (*range(2, 9), 12, 16, 32, 64):
        change: dict[str, Any] = {"trainer.num_ranks": count}
        if workload.config.model.tuning != "full":
            change["trainer.shard_weights"] = True
        if workload.num_ranks < count < len(gpus) and _fits_with(change, workload, gpus):
            return change
    return {}


def _together(workload: Workload, gpus: Sequence[Gpu]) -> list[Settings]:
    """Return settings that do it together, none of them in vain; nothing where none do."""
    chosen = _switches(workload)
    found = _completed(chosen, workload, gpus)
    for key in list(chosen) if found else ():
        fewer = {other: value for other, value in chosen.items() if other != key}
        if enough := _completed(fewer, workload, gpus):
            chosen, found = fewer, enough
    return [found] if found else []


def _completed(change: Settings, workload: Workload, gpus: Sequence[Gpu]) -> Settings:
    """Return `change`, with a shorter window if it takes one; nothing where that is no help."""
    if _fits_with(change, workload, gpus):
        return change
    shorter = _shorter(workload.with_settings(change), gpus)
    return {**change, **shorter} if shorter else {}


def _text(change: Settings) -> str:
    words = [f"{key}: {json.dumps(value)}" for key, value in change.items()]
    return " and ".join(words).replace('"', "")


def _other_gpus(workload: Workload, gpus: Sequence[Gpu]) -> list[str]:
    """Return how many GPUs like the last one, and how much more memory on each, would do."""
    changes = []
    if not gives_gpus(workload.config):
        for count in range(len(gpus) + 1, _MAX_GPUS + 1):
            if _fits(workload, [*gpus, *[gpus[-1]] * (count - len(gpus))]):
                changes.append(f"{count} GPUs instead of {len(gpus)}")
                break
    each = "a GPU" if len(gpus) == 1 else "GPUs"
    for more in _MEMORY_STEPS_GB:
        bigger = [replace(gpu, memory_mib=(gpu.memory_mib or 0) + (more << 10)) for gpu in gpus]
        if _fits(workload, bigger):
            changes.append(f"{each} with {more} GB more")
            break
    return changes


def _fits_with(change: Settings, workload: Workload, gpus: Sequence[Gpu]) -> bool:
    return _fits(workload.with_settings(change), gpus)


def _fits(workload: Workload, gpus: Sequence[Gpu]) -> bool:
    return isinstance(find_plan(workload, gpus), Plan)
