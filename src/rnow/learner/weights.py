"""The student's weights: a model folder -> a network to train, and what was trained -> files.

Everything written here loads in transformers, peft and vLLM as it is. How the network is used is
policy.py's; that a folder is complete or absent is for whoever asked for it.
"""

import copy
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rnow.errors import ModelError
from rnow.networks.rope import load_network_config
from rnow.records import derive_seed
from rnow.runtime.atomic_files import filling, give_umask_modes
from rnow.runtime.logs import quiet_transformers


def load_causal_lm(
    path: str, dtype: torch.dtype | Literal["auto"], *, window: int | None = None
) -> Any:
    """Return the model in `path`, a folder or hub name, with weights in `dtype`.

    `window` fixes positions that depend on the length of a text: networks/rope.py.
    """
    from transformers import AutoModelForCausalLM

    from rnow.learner.attention import ATTENTION_NAME

    try:
        with quiet_transformers():
            model, found = AutoModelForCausalLM.from_pretrained(
                path,
                config=load_network_config(path, window=window),
                dtype=dtype,
                attn_implementation=ATTENTION_NAME,
                output_loading_info=True,
                trust_remote_code=False,
            )
    # RuntimeError: weights of other shapes; KeyError: a family that knows its own attentions only.
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"model.path: {path} cannot be loaded: {error}") from error
    if missing := sorted(found["missing_keys"]):
        # transformers would fill them with random numbers and go on.
        raise ModelError(
            f"model.path: {path} lacks the weights {missing[0]} ({len(missing)} missing in all)"
        )
    return model


def add_lora(model: Any, *, path: str, rank: int, alpha: int, seed: int) -> Any:
    """Return `model` in peft's wrapper, with an adapter on every linear layer but the LM head.

    The adapter is in float32 (float64 in a float64 model) and changes nothing yet: its B is 0.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from rnow.learner.lora_linear import make_plain

    head = model.get_output_embeddings()
    targets = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=sorted(targets),
        task_type="CAUSAL_LM",
    )
    with quiet_transformers():
        model = get_peft_model(model, config)
    # Written as the user said it, and in one order: peft has the resolved path and a set.
    config.base_model_name_or_path = path
    config.target_modules = sorted(targets)
    # Under autocast peft would keep a float32 copy of every input, to be rounded again: the same
    # bits, for a quarter of a layer's memory.
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            make_plain(module)
    _draw_lora_weights(model, seed)
    return model


def save_adapter(model: Any, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors of a model that `add_lora` made.

    `dtype`: what the weights are rounded to; None: not at all.
    """
    weights = {name: one for name, one in model.named_parameters() if ".lora_" in name}
    rounded = {name: one.detach().to(dtype or one.dtype) for name, one in weights.items()}
    with filling(directory, needs_bytes=_state_bytes(rounded)):
        # The default would ask the hub whether the vocabulary was resized.
        model.save_pretrained(str(directory), save_embedding_layers=False, state_dict=rounded)
        (directory / "README.md").unlink()  # peft's form of a model card, not filled in
        give_umask_modes(directory)


def rounded_state(model: Any, dtype: torch.dtype, *, keep: bool = True) -> dict[str, Tensor]:
    """Return all weights and buffers by name, rounded to `dtype`; those that are one stay one.

    What is cut over several processes is gathered, so all of them have to call this; `keep` False:
    for the others' sake alone.
    """
    rounded: dict[int, Tensor] = {}
    for tensor in (state := model.state_dict(keep_vars=True)).values():
        if id(tensor) not in rounded:
            value = tensor.detach()
            value = value.to(dtype) if value.is_floating_point() else value
            if hasattr(value, "full_tensor"):
                value = value.full_tensor().cpu() if keep else value.full_tensor()
            rounded[id(tensor)] = value if keep else value.new_empty(0)
    return {name: rounded[id(tensor)] for name, tensor in state.items()}


def save_causal_lm(
    model: Any, directory: Path, dtype: torch.dtype, *, state: dict[str, Tensor] | None = None
) -> None:
    """Write model.safetensors, config.json and generation_config.json, weights rounded to `dtype`.

    Tensors that share memory, as tied embeddings do, share it in the file. `state`: the weights,
    rounded, where they are at hand.
    """
    state = rounded_state(model, dtype) if state is None else state
    with filling(directory, needs_bytes=_state_bytes(state)):
        with quiet_transformers():
            model.save_pretrained(str(directory), state_dict=state)
        # transformers wrote the precision of the live weights into config.json.
        config = copy.deepcopy(model.config)
        config.dtype = dtype
        config.save_pretrained(str(directory))
        give_umask_modes(directory)


def _state_bytes(state: dict[str, Tensor]) -> int:
    return sum({id(one): one.nbytes for one in state.values()}.values())  # tied ones are one


def export_merged(model_path: str, *, adapter_dir: Path, output_dir: Path) -> None:
    """Write the model with its adapter added to its weights, in the precision it came in."""
    from peft import PeftModel

    base = load_causal_lm(model_path, "auto")
    try:
        merged = PeftModel.from_pretrained(base, str(adapter_dir)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot add {adapter_dir} to {model_path}: {error}") from error
    save_causal_lm(merged, output_dir, merged.dtype)


def _draw_lora_weights(model: Any, seed: int) -> None:
    """Draw every A as peft does (uniform within ±1/√inputs), but from a seed of its own.

    So it is the same on every device, whatever was drawn before and whatever else is adapted.
    """
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
            bound = 1 / sqrt(parameter.shape[1])
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(drawn)
