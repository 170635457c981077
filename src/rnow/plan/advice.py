"""Which change makes a workload fit: found by planning again with it, so that none is a guess."""

from collections.abc import Sequence
from dataclasses import replace

from rnow.plan.devices import Gpu
from rnow.plan.layout import find_plan
from rnow.plan.records import Plan, Workload

_WINDOW_STEP = 1024
_MIN_WINDOW_SHARE = 4  # a window below a quarter of what was asked for is another project
_MEMORY_STEPS_GB = range(4, 132, 4)
_MAX_GPUS = 8

# A change as config.yml would have it, and the workload with it.
_Change = tuple[str, Workload]


def advise(workload: Workload, gpus: Sequence[Gpu]) -> list[str]:
    """Return the changes each of which alone makes it fit: settings, then GPUs.

    Where no single setting does, a line is of several that do so together.
    """
    changes = [text for text, changed in _switches(workload) if _fits(changed, gpus)]
    # Two settings are no advice where one does.
    changes += [text for text, _ in _shorter(workload, gpus) if not (changes and " and " in text)]
    if not changes:
        changes += _together(workload, gpus)
    return changes + _other_gpus(workload, gpus)


def _switches(workload: Workload) -> list[_Change]:
    """Return the settings that have one better value."""
    changes = []
    teacher = workload.teacher
    if workload.gpu_memory_utilization is not None:
        changed = replace(workload, gpu_memory_utilization=None)
        changes.append(("engine.gpu_memory_utilization: null", changed))
    if workload.tuning == "full":
        changes.append(("model.tuning: lora", replace(workload, tuning="lora")))
    if not workload.activation_checkpointing:
        changed = replace(workload, activation_checkpointing=True)
        changes.append(("trainer.activation_checkpointing: true", changed))
    window = workload.max_context_window
    if workload.max_tokens_per_micro_batch > window:
        changed = replace(workload, max_tokens_per_micro_batch=window)
        changes.append((f"trainer.max_tokens_per_micro_batch: {window}", changed))
    quantized = workload.teacher_quantization or teacher.quantization
    if workload.teacher_engine == "vllm" and quantized is None:
        changed = replace(workload, teacher_quantization="fp8")
        changes.append(("teacher.quantization: fp8", changed))
    return changes


def _shorter(workload: Workload, gpus: Sequence[Gpu]) -> list[_Change]:
    """Return the longest window that fits, where there is one; micro-batches are no longer."""
    micro_batch = workload.max_tokens_per_micro_batch
    first = (workload.max_context_window - 1) // _WINDOW_STEP * _WINDOW_STEP
    last = max(_WINDOW_STEP, workload.max_context_window // _MIN_WINDOW_SHARE)
    for window in range(first, last - 1, -_WINDOW_STEP):
        text = f"rollout.max_context_window: {window}"
        changed = replace(workload, max_context_window=window)
        if _fits(changed, gpus):
            return [(text, changed)]
        if micro_batch > window:
            changed = replace(changed, max_tokens_per_micro_batch=window)
            if _fits(changed, gpus):
                return [(f"{text} and trainer.max_tokens_per_micro_batch: {window}", changed)]
    return []


def _together(workload: Workload, gpus: Sequence[Gpu]) -> list[str]:
    """Return one line of settings that do it together, none of them in vain."""
    chosen = [text for text, _ in _switches(workload)]
    changed = _apply(workload, chosen)
    if not (_fits(changed, gpus) or _shorter(changed, gpus)):
        return []
    for text in list(chosen):
        fewer = [other for other in chosen if other != text]
        without = _apply(workload, fewer)
        if _fits(without, gpus) or _shorter(without, gpus):
            chosen, changed = fewer, without
    if _fits(changed, gpus):
        return [" and ".join(chosen)]
    return [" and ".join([*chosen, text]) for text, _ in _shorter(changed, gpus)]


def _apply(workload: Workload, texts: Sequence[str]) -> Workload:
    for text in texts:
        workload = dict(_switches(workload))[text]
    return workload


def _other_gpus(workload: Workload, gpus: Sequence[Gpu]) -> list[str]:
    """Return how many GPUs like the last one, and how much more memory on each, would do."""
    changes = []
    if workload.resources is None:
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


def _fits(workload: Workload, gpus: Sequence[Gpu]) -> bool:
    return isinstance(find_plan(workload, gpus), Plan)
