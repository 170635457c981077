"""Rotary positions that would depend on the batch, fixed by the window.

`longrope` (Phi) has two sets of factors, and transformers takes the one or the other by the longest
row of a forward: a row's numbers change with its neighbours, and with where its text was cut. vLLM
takes one set for good, by the length that it is started for. So does rnow: the same set for whoever
samples, scores and trains, by rollout.max_context_window.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rnow.errors import ModelError
from rnow.runtime.logs import quiet_transformers


def load_network_config(path: str | Path, *, window: int | None) -> Any:
    """Return transformers' configuration of the model in `path`, with its positions fixed.

    `window` None: they are left as they are, for whoever reads no text longer than the model's own.
    """
    from transformers import AutoConfig

    with quiet_transformers():
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    if window is not None:
        fix_rope(config, path=str(path), window=window)
    return config


def config_errors() -> tuple[type[Exception], ...]:
    """Return what transformers raises for a config.json that it cannot read: of no common base."""
    from huggingface_hub.errors import StrictDataclassError

    return (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError)


def fix_rope(config: Any, *, path: str, window: int) -> None:
    """Change `config`, so that no position depends on how long a batch is; else ModelError."""
    text = config.get_text_config()
    for parameters in _all_parameters(text):
        kind = parameters.get("rope_type")
        if kind == "dynamic":
            raise ModelError(
                f"{path}: its rotary positions are of type dynamic, which change with the length "
                "of a text in one engine and not in another; take another model"
            )
        if kind == "longrope":
            trained = parameters.get("original_max_position_embeddings")
            trained = trained or text.max_position_embeddings
            factors = parameters["long_factor" if window > trained else "short_factor"]
            parameters["long_factor"] = parameters["short_factor"] = list(factors)


def _all_parameters(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the rotary parameters: one set, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (each for each in parameters.values() if isinstance(each, dict))
