"""What a model's config.json says that a run must know before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rnow.errors import ModelError
from rnow.networks.experts import has_experts
from rnow.networks.layer_kinds import why_not_local
from rnow.networks.rope import config_errors, load_network_config
from rnow.plan.records import EngineKind

# Kinds of network whose gate and up projections are one layer in transformers, and two under an
# adapter in vLLM's own class for them.
_FUSED = {"glm4"}
# Kinds for which vLLM has a class of its own that takes no adapters.
_WITHOUT_ADAPTERS = {
    *("bloom", "cohere2_moe", "dbrx", "falcon", "falcon_mamba", "gemma3n_text", "gpt2", "gptj"),
    *("mamba", "mamba2", "mimo_v2_flash", "stablelm", "zamba2"),
}
# Of these positions vLLM takes max_position_embeddings for the stretched length.
_STRETCHED_ALREADY = {"yarn", "longrope", "llama3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What is done with a model.

    Use(window=4096, engine="vllm", device="cpu", is_adapted=True)
    """

    window: int  # tokens of the longest text
    engine: EngineKind  # what it samples with, or scores
    device: Literal["cuda", "cpu"]
    is_trained: bool = False
    is_adapted: bool = False  # by adapters, which the engine is given
    is_scored: bool = False  # whole texts of others, and nothing sampled


def check_network(path: str, folder: Path, use: Use) -> tuple[str, ...]:
    """Return what is to be said of the network in `folder`; ModelError where it cannot run.

    `path` is the model's name in config.yml.
    """
    config = _read(folder, window=use.window)
    _check_window(path, config, use)
    if use.engine != "local":
        _check_served_weights(path, config, use)
        return ()
    if other_layers := why_not_local(config):
        raise ModelError(f"{path} {other_layers}")
    from rnow.learner.reach import takes_our_attention

    if not takes_our_attention(folder):
        raise ModelError(
            f"{path} ({config.model_type}) has an attention of its own, in the place of which the "
            "local engine cannot put its; set engine.kind to vllm"
        )
    if has_experts(config):
        return (
            f"{path} is a mixture of experts: in the local engine its bits depend on what runs "
            "beside it, so a resumed run may differ from an uninterrupted one",
        )
    return ()


def _check_served_weights(path: str, config: Any, use: Use) -> None:
    """Refuse weights that vLLM cannot be given: it would say so when the first are published."""
    if use.is_adapted and (why := _why_no_adapters(config.model_type)):
        raise ModelError(
            f"vLLM serves no adapters of {path}: {why}; set engine.kind to local, or model.tuning "
            "to full"
        )
    # Where a server of the user's own runs, nothing says.
    on_cpu = use.engine == "vllm" and use.device == "cpu"
    if on_cpu and (use.is_adapted or use.is_trained) and has_experts(config):
        # It keeps experts in its kernels' layout and reads new ones as if they were.
        lacks = "serves no adapters" if use.is_adapted else "takes no new weights"
        raise ModelError(
            f"vLLM on a CPU {lacks} of {path}, a mixture of experts; set engine.kind to local"
        )


def _why_no_adapters(kind: str) -> str | None:
    if kind in _FUSED:
        return f"in an adapter of {kind} gate and up are one layer, in vLLM they are two"
    return f"its {kind} takes none" if kind in _WITHOUT_ADAPTERS else None


def _read(folder: Path, *, window: int | None) -> Any:
    try:
        return load_network_config(folder, window=window).get_text_config()
    except config_errors() as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder / 'config.json'} cannot be read: {first}") from error


def _check_window(path: str, config: Any, use: Use) -> None:
    key, window = "rollout.max_context_window", use.window
    spare, why = 0, ""
    if use.engine == "vllm" and use.is_scored:
        spare, why = 1, " (vLLM scores a text with one token of room behind it)"
    parameters = getattr(config, "rope_parameters", None) or {}
    longest, stretched = _longest(config, parameters, engine=use.engine)
    if longest and window + spare > longest:
        more = f", or max_position_embeddings in its config.json to {stretched}"
        raise ModelError(
            f"{key} is {window}, and {path} reads {longest} tokens at most{why}; set {key} to "
            f"{longest - spare} or less{more if stretched > longest else ''}"
        )
    original = parameters.get("original_max_position_embeddings")
    if spare and parameters.get("rope_type") == "longrope" and window == original:
        raise ModelError(
            f"{key} is {window}, and behind that {path} has other positions{why}; set {key} to "
            f"{window - spare} or less, or above {window}"
        )


def _longest(config: Any, parameters: Any, *, engine: EngineKind) -> tuple[int, int]:
    """Return how many tokens are read at most, and how many once config.json says what it may.

    0: nothing says.
    """
    said = getattr(config, "max_position_embeddings", None) or 0
    if "factor" not in parameters:
        return said, said
    # It stretches the length that the model was trained at.
    trained = parameters.get("original_max_position_embeddings") or said
    stretched = max(said, int(parameters["factor"] * trained))
    is_said = engine == "vllm" and parameters.get("rope_type") in _STRETCHED_ALREADY
    return (said if is_said else stretched), stretched
