"""The kinds of a text network's layers, by its configuration, and which the local engine runs."""

from typing import Any

_LOCAL = {"full_attention", "sliding_attention"}


def layer_kinds(config: Any) -> tuple[str, ...]:
    """Return the kind of each layer of transformers' configuration of a text network.

    Where it names none, every layer is full attention, or a window that is no narrower memory.
    """
    kinds = getattr(config, "layer_types", None)
    return tuple(kinds or ("full_attention",) * (getattr(config, "num_hidden_layers", None) or 0))


def why_not_local(config: Any) -> str | None:
    """Say which layers the local engine cannot run, and what to do; None: it runs all."""
    unknown = sorted(set(layer_kinds(config)) - _LOCAL)
    if not unknown:
        return None
    return (
        f"has layers of kind {', '.join(unknown)}; the local engine runs causal attention with or "
        "without a sliding window, set engine.kind to vllm"
    )
