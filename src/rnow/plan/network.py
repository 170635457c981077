"""What a model's config.json says that a run must know before anything is loaded."""

from pathlib import Path
from typing import Any

from rnow.errors import ModelError
from rnow.plan.records import EngineKind
from rnow.runtime.rope import load_network_config

_KINDS_HERE = {"full_attention", "sliding_attention"}  # of layers, in the local engine
# What transformers' configurations call the number of experts.
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def check_network(path: str, folder: Path, *, window: int, engine: EngineKind) -> tuple[str, ...]:
    """Return what is to be said of the network in `folder`; ModelError where it cannot run.

    `path` is the model's name in config.yml, `engine` what it samples or scores with.
    """
    try:
        config = load_network_config(folder, window=window).get_text_config()
    # transformers raises OSError, ValueError, KeyError, TypeError for a config.json that it cannot
    # read, without a common base.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder / 'config.json'} cannot be read: {first}") from error
    _check_window(path, config, window=window)
    if engine != "local":
        return ()
    kinds = set(getattr(config, "layer_types", None) or _KINDS_HERE)
    if unknown := kinds - _KINDS_HERE:
        raise ModelError(
            f"{path} has layers of kind {', '.join(sorted(unknown))}; the local engine runs causal "
            "attention with or without a sliding window, set engine.kind to vllm"
        )
    from rnow.learner.reach import takes_our_attention

    if not takes_our_attention(folder):
        raise ModelError(
            f"{path} ({config.model_type}) has an attention of its own, in the place of which the "
            "local engine cannot put its; set engine.kind to vllm"
        )
    if any(getattr(config, name, None) for name in _EXPERT_COUNTS):
        return (
            f"{path} is a mixture of experts: in the local engine its bits depend on what runs "
            "beside it, so a resumed run may differ from an uninterrupted one",
        )
    return ()


def _check_window(path: str, config: Any, *, window: int) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    if "factor" in parameters:
        # It stretches the length that the model was trained at.
        trained = parameters.get("original_max_position_embeddings") or longest or 0
        longest = max(longest or 0, int(parameters["factor"] * trained))
    if longest and window > longest:
        key = "rollout.max_context_window"
        raise ModelError(
            f"{key} is {window}, and {path} reads {longest} tokens at most; set {key} to {longest} "
            "or less"
        )
