"""A model folder or a published policy, as a network ready to run.

An adapter is put in by hand, into a copy that shares every tensor which the adapter leaves alone:

    float32     merged, W + scale · B·A: the same numbers, and as fast as without
    narrower    beside W, as the trainer has it. Merged, W + scale · B·A would be rounded to the
                spacing of W, which is far wider than most of what training changes

peft would give the same numbers, but takes seconds to import, and code that we can read is code
that we can refuse to do wrongly: whatever of an adapter is not plain LoRA is an error.
"""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PreTrainedModel

from rnow.engines.local.attention import ATTENTION_NAME
from rnow.errors import EngineError, ModelError
from rnow.runtime.logs import quiet_transformers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What an adapter may say without changing what W + scale · B·A means; anything else must be absent
# or false.
_PLAIN_LORA_KEYS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)

# These initialisations rewrite the base weights, so that the adapter alone does not say what the
# policy is.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")


class _Adapted(nn.Module):
    """A linear layer with its adapter beside it, all in one precision."""

    def __init__(self, inner: nn.Linear, lora_a: Tensor, lora_b: Tensor, scale: float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = scale
        self.lora_a = nn.Parameter(lora_a.to(inner.weight), requires_grad=False)
        self.lora_b = nn.Parameter(lora_b.to(inner.weight), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        change = linear(linear(hidden, self.lora_a), self.lora_b)
        adapted: Tensor = self.inner(hidden) + change * self.scale
        return adapted


def load_model(
    path: str | Path, *, dtype: str = "auto", device: str | None = None
) -> PreTrainedModel:
    """Load a causal language model with our attention; else `ModelError` says what to do."""
    if dtype not in (*_DTYPES, "auto"):
        raise ModelError(f"dtype {dtype} is not one of auto, {', '.join(_DTYPES)}")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dtype if dtype != "auto" else "float32" if place == "cpu" else "bfloat16"
    _check_folder(path)
    try:
        with quiet_transformers():
            model, found = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=_DTYPES[chosen],
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
    return model.to(place).eval().requires_grad_(False)


def load_policy_model(path: Path, base: PreTrainedModel) -> PreTrainedModel:
    """Load what is published under `path`: an adapter on `base`, or a model of its shape."""
    if (path / "adapter_config.json").is_file():
        return _adapted_model(path, base)
    if not (path / "config.json").is_file():
        raise EngineError(
            f"{path}: holds neither adapter_config.json nor config.json, so it is no policy"
        )
    weight = next(base.parameters())
    dtype = next(name for name, value in _DTYPES.items() if value == weight.dtype)
    model = load_model(path, dtype=dtype, device=str(weight.device))
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


def _check_folder(path: str | Path) -> None:
    """Refuse what is no model folder; a hub name is left to transformers, which may have it."""
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ModelError(f"{path}: has no config.json, so it is not a model folder")
    elif isinstance(path, Path) or str(path).count("/") != 1 or str(path)[0] in "./~":
        raise ModelError(
            f"{path}: no such folder; give the folder of a model, or fetch one with "
            "`hf download NAME --local-dir FOLDER`"
        )


def _check_layers(path: str | Path, model: PreTrainedModel) -> None:
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ModelError(
            f"{path}: has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}; "
            "the local engine runs plain causal attention only, set engine.kind to vllm"
        )


def _adapted_model(path: Path, base: PreTrainedModel) -> PreTrainedModel:
    config_file = path / "adapter_config.json"
    try:
        config = json.loads(config_file.read_text())
        tensors = load_file(path / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(f"{path}: the adapter cannot be read: {error}") from error
    _check_plain_lora(config_file, config)
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    model = copy.deepcopy(base, shared)
    modules = dict(model.named_modules())
    for name, (lora_a, lora_b) in _pairs(path, tensors).items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise EngineError(f"{path}: adapts {name}, which is not a linear layer of this model")
        if (lora_b.shape[0], lora_a.shape[1]) != tuple(layer.weight.shape):
            raise EngineError(
                f"{path}: {name} is {list(layer.weight.shape)} here, "
                f"[{lora_b.shape[0]}, {lora_a.shape[1]}] in the adapter"
            )
        scale = _scale(config, name, lora_a.shape[0])
        if layer.weight.dtype == torch.float32:
            place = layer.weight.device
            merged = layer.weight + scale * (lora_b.to(place).float() @ lora_a.to(place).float())
            layer.weight = nn.Parameter(merged, requires_grad=False)
        else:
            parent, _, own = name.rpartition(".")
            setattr(modules[parent], own, _Adapted(layer, lora_a, lora_b, scale))
    return model


def _check_plain_lora(config_file: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise EngineError(
            f"{config_file}: peft_type is {config.get('peft_type')}, only LORA is applied"
        )
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        raise EngineError(
            f"{config_file}: init_lora_weights {config['init_lora_weights']} "
            "changes the base weights as well, only plain LoRA is applied"
        )
    asked = [name for name, value in config.items() if value and name not in _PLAIN_LORA_KEYS]
    if config.get("bias", "none") != "none":
        asked.append("bias")
    if asked:
        raise EngineError(
            f"{config_file}: sets {', '.join(sorted(asked))}, only plain LoRA is applied"
        )


def _pairs(path: Path, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module name -> (A [rank, in], B [out, rank]); no tensor may be left over."""
    prefix, a_end, b_end = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
    names = {
        key.removeprefix(prefix).removesuffix(end)
        for key in tensors
        for end in (a_end, b_end)
        if key.endswith(end)
    }
    wanted = {prefix + name + end for name in names for end in (a_end, b_end)}
    if not names or wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors)) or ["no tensors"]
        raise EngineError(f"{path}: not pairs of lora_A and lora_B alone: {odd[0]}")
    return {
        name: (tensors[prefix + name + a_end], tensors[prefix + name + b_end])
        for name in sorted(names)
    }


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
            break
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
