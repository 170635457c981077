"""A model folder or a published policy, as a network ready to run.

peft puts an adapter into a copy that shares every tensor which the adapter leaves alone:

    float32     merged, W + scale · B·A: the same numbers, and as fast as without
    narrower    beside W, as the trainer has it. Merged, W + scale · B·A would be rounded to the
                spacing of W, which is far wider than most of what training changes

Whatever of an adapter is not plain LoRA is an error, as it is at a vLLM server.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rnow.engines.local.attention import ATTENTION_NAME
from rnow.errors import EngineError, ModelError
from rnow.networks.layer_kinds import why_not_local
from rnow.networks.rope import load_network_config
from rnow.runtime.logs import quiet_transformers

# Others are subtracted from the base weights: the adapter alone does not say what the policy is.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")
_ONLY = "only plain LoRA on linear layers is applied"


def load_model(
    path: Path, *, dtype: torch.dtype, device: str, window: int | None = None
) -> PreTrainedModel:
    """Load a causal language model with our attention; else `ModelError` says what to do.

    `window` fixes positions that depend on the length of a text: networks/rope.py.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: has no config.json, so it is not a model folder")
    try:
        with quiet_transformers():
            model, found = AutoModelForCausalLM.from_pretrained(
                str(path),
                config=load_network_config(path, window=window),
                dtype=dtype,
                attn_implementation=ATTENTION_NAME,
                output_loading_info=True,
                trust_remote_code=False,
            )
    # transformers raises OSError, ValueError, KeyError, ImportError, RuntimeError for files that
    # are missing or foreign, without a common base; each means the same to the user: this model
    # cannot be loaded.
    except Exception as error:
        reason = _reason(error)
        raise ModelError(
            f"{path}: cannot be loaded as a causal language model: {reason}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        # transformers would fill them with random numbers and go on.
        raise ModelError(f"{path}: lacks the weights {missing[0]} ({len(missing)} missing in all)")
    _check_layers(path, model)
    return model.to(device).eval().requires_grad_(False)


def load_policy_model(path: Path, base: PreTrainedModel) -> PreTrainedModel:
    """Load what is published under `path`: an adapter on `base`, or a model of its shape."""
    if (path / "adapter_config.json").is_file():
        return _adapted_model(path, base)
    if not (path / "config.json").is_file():
        raise EngineError(
            f"{path}: holds neither adapter_config.json nor config.json, so it is no policy"
        )
    weight = next(base.parameters())
    model = load_model(path, dtype=weight.dtype, device=str(weight.device))
    shapes = {name: tuple(value.shape) for name, value in base.state_dict().items()}
    if {name: tuple(value.shape) for name, value in model.state_dict().items()} != shapes:
        raise EngineError(
            f"{path}: its weights have other names or shapes "
            "than the model that this engine started with"
        )
    return model


def _reason(error: Exception) -> str:
    """Return what transformers said; where that says little, what it means."""
    reason = str(error).strip().split("\n")[0]
    if "ignore_mismatched_sizes" in reason:
        return "its weights have other shapes than its config.json says"
    if isinstance(error, SafetensorError):
        return f"a file of weights is damaged or cut short ({reason}); fetch the model again"
    return reason


def _check_layers(path: Path, model: PreTrainedModel) -> None:
    if other_layers := why_not_local(model.config.get_text_config()):
        raise ModelError(f"{path}: {other_layers}")


def _adapted_model(path: Path, base: PreTrainedModel) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict

    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    try:
        given = _tensor_names(path)
        with quiet_transformers():
            model = PeftModel.from_pretrained(
                copy.deepcopy(base, shared),
                str(path),
                autocast_adapter_dtype=False,
                low_cpu_mem_usage=True,  # draws no first weights
                torch_device=str(base.device),
            )
    # A file that is missing, damaged or foreign; weights of other shapes than the model's.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"{path}: the adapter cannot be loaded: {error}") from error
    # peft passes over what has no place in the model.
    if odd := sorted(given ^ set(get_peft_model_state_dict(model, save_embedding_layers=False))):
        raise EngineError(f"{path}: does not fit this model: {odd[0]} ({len(odd)} such in all)")
    _own_weights(path, model)
    is_merged = base.dtype == torch.float32
    adapted = model.merge_and_unload(safe_merge=True) if is_merged else model.get_base_model()
    frozen: PreTrainedModel = adapted.eval().requires_grad_(False)
    return frozen


def _tensor_names(path: Path) -> set[str]:
    """Return what is in the adapter's file; refuse what would be written over the base weights."""
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
    if config["peft_type"] != "LORA":
        raise EngineError(f"{path}: peft_type is {config['peft_type']}, {_ONLY}")
    if (init := config.get("init_lora_weights", True)) not in _PLAIN_INITS:
        raise EngineError(
            f"{path}: init_lora_weights {init} changes the base weights as well, {_ONLY}"
        )
    if others := sorted(name for name in names if ".lora_" not in name):
        raise EngineError(f"{path}: holds {others[0]} of the base weights as well, {_ONLY}")
    return names


def _own_weights(path: Path, model: Any) -> None:
    """Give each adapted layer weights of its own to merge into: tied ones are another's too."""
    from peft.tuners.lora import Linear, LoraLayer

    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            kinds = [type(variant).__name__ for variant in layer.lora_variant.values()]
            if kinds or not isinstance(layer, Linear):
                kind = kinds[0] if kinds else type(layer).__name__
                raise EngineError(f"{path}: {name} is adapted as {kind}, {_ONLY}")
            inner = layer.get_base_layer()
            for part, tensor in list(inner.named_parameters()):
                setattr(inner, part, nn.Parameter(tensor.data, requires_grad=False))
