"""Do the weights of a model's files fit the network that its config.json describes?

transformers fills what is missing with random numbers, and leaves out what is too much. Asked of
names and shapes alone, on torch's meta device, by its own loading: no weight is read.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from rnow.errors import ModelError
from rnow.networks.rope import load_network_config
from rnow.runtime.logs import quiet_transformers


def check_fit(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Raise ModelError for weights that are missing or of another shape; return a line on those
    that are left out. `shapes`: of the weights in the files of `folder`.
    """
    found = _loading_of(folder, shapes)
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{folder}: lacks the weights {missing[0]} ({len(missing)} missing in all)"
        )
    if mismatched := sorted(found["mismatched_keys"]):
        name, held, wanted = mismatched[0]
        raise ModelError(
            f"{folder}: {name} is {_by(held)} in its files, and {_by(wanted)} by its config.json "
            f"({len(mismatched)} such weights in all); take both from the same model"
        )
    if more := sorted(found["unexpected_keys"]):
        return (
            f"{folder}: {len(more)} of its {len(shapes)} weights are of no part of the network "
            f"that its config.json describes, and are left out: {more[0]}",
        )
    return ()


def _loading_of(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Collection[Any]]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    nothing: dict[str, Collection[Any]] = dict.fromkeys(
        ("missing_keys", "mismatched_keys", "unexpected_keys"), ()
    )
    config = load_network_config(folder, window=None)
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kinds is None:
        return nothing  # no causal model at all: whoever makes the network says so
    kind = kinds[0] if isinstance(kinds, tuple) else kinds
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        with quiet_transformers():
            _, found = kind.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    # Numbers that do not go together fail in any line of any family, and in `count_weights` too.
    except Exception:
        return nothing
    return {key: found[key] for key in nothing}


def _by(shape: Collection[int]) -> str:
    return " x ".join(map(str, shape))
