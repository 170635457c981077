"""Settings that load, but do not do what their writer may think: a warning each."""

from importlib.util import find_spec
from pathlib import Path

from rnow.config.settings import Config, TeacherSettings
from rnow.config.source import ConfigSource

FEWEST_ROLLOUTS = 64  # a step, in the published runs of docs/recipes.md
# Of a generation on a server of which every place is taken: 8B parameters on an H100 with a full
# cache take 0.03, smaller GPUs more.
SLOW_S_A_TOKEN = 0.05


def few_rollouts(config: Config) -> str | None:
    """Return advice where a step has fewer rollouts than those of published runs.

    It is for whoever checks or begins a run: nobody else can do anything about it.
    """
    num_rollouts = config.data.batch_size * config.data.group_size
    if config.dataset_type != "distill" or num_rollouts >= FEWEST_ROLLOUTS:
        return None
    return (
        f"a step has {num_rollouts} rollouts (data.batch_size x data.group_size); published runs "
        f"have {FEWEST_ROLLOUTS} to 2048, most of them of different prompts, and fewer make steps "
        "noisy: docs/recipes.md"
    )


def long_generations(config: Config) -> str | None:
    """Return advice where one generation may take longer than a request is given."""
    request_s, window = config.engine.request_timeout_s, config.rollout.max_context_window
    max_tokens = min(config.rollout.max_tokens or window, window)
    seconds = max_tokens * SLOW_S_A_TOKEN
    if config.engine.kind == "local" or seconds <= request_s:
        return None
    is_set = "is" if config.rollout.max_tokens else "is not set:"
    return (
        f"rollout.max_tokens {is_set} {max_tokens} tokens a generation, which take {seconds:.0f} s "
        f"at {SLOW_S_A_TOKEN:g} s a token, and engine.request_timeout_s is {request_s:g}: a "
        "runaway holds up its whole step until it is cut there. Set rollout.max_tokens to "
        f"{int(request_s / SLOW_S_A_TOKEN)} or less"
    )


def report_cautions(source: ConfigSource, config: Config, directory: Path) -> None:
    """Report what loads, but does not do what its writer may think."""
    for key, value, limit in (
        ("data.batch_size", config.data.batch_size, 32),
        ("data.group_size", config.data.group_size, 64),
        ("model.qlora_rank", config.model.qlora_rank, 128),
    ):
        if value > limit:
            source.warn(
                key,
                f"{key} is {value}; the hosted service takes {limit} at most, "
                "here memory and time are the limits",
            )
    key, estimator = "algorithm.adv_estimator", config.algorithm.adv_estimator
    if config.dataset_type == "distill" and estimator != "grpo":
        source.warn(key, f"{key} {estimator} has no effect: distillation has no rewards")
    if config.trainer.eval_step > 0 and not (directory / config.data.val_file).is_file():
        key = "trainer.eval_step"
        source.warn(
            key,
            f"{key} is {config.trainer.eval_step}, but there is no {config.data.val_file}: "
            "nothing is evaluated during the run",
        )
    for name in config.trainer.report_to:
        if not is_installed(name):
            source.warn(
                "trainer.report_to",
                f"trainer.report_to names {name}, which is not installed: it is told nothing; "
                f"{install_tracker(name)}",
            )
    if config.teacher is not None:
        _report_engine_cautions(source, config, config.teacher)


def is_installed(tracker: str) -> bool:
    """Whether the package is there; a folder of its name, which a run may have made, is none."""
    found = find_spec(tracker)
    return found is not None and found.origin is not None


def install_tracker(name: str) -> str:
    return f"install it beside rnow: pip install -e '.[{name}]' in the folder of rnow's source"


def _report_engine_cautions(source: ConfigSource, config: Config, teacher: TeacherSettings) -> None:
    key, rollout_s = "rollout.rollout_timeout", config.rollout.rollout_timeout
    request_s = config.engine.request_timeout_s
    if config.engine.kind != "local" and rollout_s <= request_s:
        source.warn(
            key,
            f"{key} is {rollout_s:g} s, not above engine.request_timeout_s ({request_s:g} s): "
            "rollouts end before a server that hangs is noticed",
        )
    is_served = teacher.url is None and (teacher.engine or config.engine.kind) != "local"
    if teacher.quantization is not None and not is_served:
        key = "teacher.quantization"
        source.warn(key, f"{key} has no effect: it is for a vLLM server that rnow starts")
