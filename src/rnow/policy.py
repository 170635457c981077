"""The student as the trainer holds it: a transformers model, LoRA through peft or all of its weights.

    token ids ──body──▶ hidden states ──rows that predict an action token──▶ LM head, in chunks ──▶ log-probabilities

Precision: `dtype` is that of the matrix products. What is trained is kept in float32 (float64 if asked for) whatever
`dtype` is: a learning rate of 1e-5 is below the spacing of bfloat16 around a usual weight, so an update would vanish. The
frozen weights under LoRA are kept in `dtype` itself.

No dropout, and no other draw: the network is in eval mode, and the same tokens give the same numbers.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rnow.errors import CheckpointError, ModelError
from rnow.lm_head import default_chunk_tokens, token_logprobs
from rnow.records import derive_seed

__all__ = ["Policy", "PolicySettings", "export_merged"]

# From this size on, what checkpointing saves in memory is worth a second forward on a CPU too.
_LARGE_MODEL_PARAMETERS = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The keys of `model` and `trainer` that the network reads, under their own names."""

    path: str  # folder or hub name, as the user wrote it
    tuning: Literal["lora", "full"] = "lora"
    qlora_rank: int = 32
    qlora_alpha: int | None = None  # None: 2 × rank
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    activation_checkpointing: Literal["auto"] | bool = "auto"
    seed: int = 0  # of LoRA's first weights
    device: str = "auto"  # "cuda" where there is one, else "cpu"


class Policy:
    """Network and trained weights. Use `Policy.load`."""

    def __init__(
        self, model: Any, *, settings: PolicySettings, dtype: torch.dtype, chunk_tokens: int | None
    ) -> None:
        """`model` is a causal LM of transformers, or that in peft's wrapper, on its device already."""
        self._model = model
        self._causal_lm: Any = model.get_base_model() if settings.tuning == "lora" else model
        self._settings = settings
        self._dtype = dtype
        self._head: nn.Linear = self._causal_lm.get_output_embeddings()
        self._chunk_tokens = chunk_tokens or default_chunk_tokens(self._head.weight.shape[0])
        self.device: torch.device = self._head.weight.device

    @classmethod
    def load(cls, settings: PolicySettings, *, chunk_tokens: int | None = None) -> "Policy":
        """Load the student. Raises ModelError if it cannot be loaded or cannot be trained here.

        `chunk_tokens`: how many tokens go through the LM head at once; None: by the size of the vocabulary.
        """
        device = _device(settings.device)
        dtype = _dtype(settings.dtype, device)
        model = _load_causal_lm(settings, dtype).to(device)
        if settings.tuning == "lora":
            model = _with_lora(model, settings)
        policy = cls(model, settings=settings, dtype=dtype, chunk_tokens=chunk_tokens)
        policy._set_activation_checkpointing()
        policy._check_head()
        return policy

    @property
    def body(self) -> nn.Module:
        """Everything but the LM head: token ids to hidden states."""
        return cast(nn.Module, self._causal_lm.base_model)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return self._dtype

    def action_logprobs(
        self, token_ids: Tensor, *, position_ids: Tensor, action_index: Tensor
    ) -> Tensor:
        """Return log p of the tokens at `action_index` given those before them, nats, [actions], at least float32.

        `token_ids` and `position_ids` are [rows, width], `action_index` [actions] counts in token_ids.flatten().
        """
        with self._autocast():
            output = self.body(input_ids=token_ids, position_ids=position_ids, use_cache=False)
        # A token is predicted where the one before it was read.
        hidden = output.last_hidden_state.flatten(0, 1).index_select(0, action_index - 1)
        return token_logprobs(
            hidden.to(self._dtype),
            token_ids.flatten()[action_index],
            weight=self._head.weight,
            bias=self._head.bias,
            chunk_tokens=self._chunk_tokens,
        )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer moves, by name. A tied LM head is there once, as the embedding."""
        return {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the trained weights, by name: the live tensors, to be saved before the next update."""
        return {name: parameter.detach() for name, parameter in self.trained_parameters().items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` gave, bit for bit. Raises CheckpointError if it is of another model."""
        parameters = self.trained_parameters()
        expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if expected != found:
            name, *_ = sorted(dict(expected.items() ^ found.items()))
            raise CheckpointError(
                f"the checkpoint is of another student: {name} is {found.get(name, 'not there')}, "
                f"the student of this run has {expected.get(name, 'no such weight')}; start anew with --fresh"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def save_adapter(self, directory: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as peft and vLLM load them."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        # "auto" would ask the hub whether the vocabulary was resized.
        state = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
            directory / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config = self._model.peft_config["default"]
        config.inference_mode = True
        config.save_pretrained(str(directory))

    def save_full(self, directory: Path) -> None:
        """Write model.safetensors, config.json and generation_config.json, in `dtype`, as transformers and vLLM load
        them."""
        _save_causal_lm(self._causal_lm, directory, self._dtype)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype in (torch.float32, torch.float64):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def _set_activation_checkpointing(self) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        wanted = self._settings.activation_checkpointing
        if wanted == "auto":
            num_parameters = sum(p.numel() for p in self._causal_lm.parameters())
            wanted = self.device.type != "cpu" or num_parameters >= _LARGE_MODEL_PARAMETERS
        self._model.eval()
        if not wanted:
            return
        self._causal_lm.gradient_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}
        )
        # A layer checkpoints itself in training mode alone. Only its own flag is set: whatever is inside it, dropout
        # among it, stays in eval mode.
        for module in self._causal_lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True

    def _check_head(self) -> None:
        """Refuse a model that does more with hidden states than its LM head: scaling, soft caps, another body."""
        token_ids = torch.arange(8, device=self.device)[None] % self._head.weight.shape[0]
        with torch.no_grad(), self._autocast():
            theirs = self._causal_lm(input_ids=token_ids, use_cache=False).logits
            ours = self._head(self.body(input_ids=token_ids, use_cache=False).last_hidden_state)
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-5):
            raise ModelError(
                f"{self._settings.path}: {type(self._causal_lm).__name__} does more with its last hidden states "
                f"than its LM head says (greatest difference of a logit: {(ours - theirs).abs().max():.3g}); "
                "rnow cannot train it"
            )


def export_merged(model_path: str, *, adapter_dir: Path, output_dir: Path) -> None:
    """Write the model with its adapter added to its weights, in the precision that the model is saved in."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    try:
        base = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
        merged = PeftModel.from_pretrained(base, str(adapter_dir)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot add {adapter_dir} to {model_path}: {error}") from error
    _save_causal_lm(merged, output_dir, merged.dtype)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
        "float64": torch.float64,
    }[name]


def _load_causal_lm(settings: PolicySettings, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    stored = dtype
    if settings.tuning == "full":
        stored = torch.promote_types(dtype, torch.float32)
    try:
        return AutoModelForCausalLM.from_pretrained(settings.path, dtype=stored)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {settings.path} cannot be loaded: {error}") from error


def _with_lora(model: Any, settings: PolicySettings) -> Any:
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    targets = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    config = LoraConfig(
        r=settings.qlora_rank,
        lora_alpha=settings.qlora_alpha or 2 * settings.qlora_rank,
        lora_dropout=0.0,
        target_modules=sorted(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=settings.path,
    )
    model = get_peft_model(model, config)
    # peft would have written the path as transformers resolved it, and the names as a set: another order each time.
    config.base_model_name_or_path = settings.path
    config.target_modules = sorted(targets)
    _draw_lora_weights(model, settings.seed)
    return model


def _draw_lora_weights(model: Any, seed: int) -> None:
    """Draw every A as peft does (uniform within ±1/√inputs; B is 0), but each from a seed of its own: the same on
    every device, and whatever was drawn before."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
            bound = 1 / sqrt(parameter.shape[1])
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(drawn)


def _save_causal_lm(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """`model.save_pretrained` in `dtype`; tensors that share memory (tied embeddings) go on sharing it."""
    rounded: dict[int, Tensor] = {}

    def round_once(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return rounded.setdefault(tensor.data_ptr(), tensor.to(dtype))

    state = {name: round_once(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(str(directory), state_dict=state)
    # It wrote the precision of the live model into config.json.
    live_dtype = model.config.dtype
    model.config.dtype = dtype
    model.config.save_pretrained(str(directory))
    model.config.dtype = live_dtype
