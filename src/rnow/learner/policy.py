"""The student as the trainer holds it: a transformers model, and what of it is trained.

How it is computed is network.py's. What is trained is an adapter (LoRA) or all weights. `dtype` is
the precision of matrix products; what is trained is kept in float32 at least, whatever `dtype` is:
an update of 1e-5 is below the spacing of bfloat16 around a usual weight and would vanish. Weights
that are frozen under LoRA are kept in `dtype` itself.

No dropout and no other draw: the same tokens give the same numbers.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rnow.config.settings import ModelSettings
from rnow.errors import ModelError
from rnow.learner.checkpoint import check_student
from rnow.learner.lm_head import LogitMap, find_logit_map
from rnow.learner.network import Network
from rnow.learner.packable import why_not_packed
from rnow.learner.rms_norm import make_lean
from rnow.learner.skippable import bears_skipping
from rnow.learner.weights import (
    add_lora,
    load_causal_lm,
    rounded_state,
    save_adapter,
    save_causal_lm,
)

if TYPE_CHECKING:
    from rnow.learner.ranks.group import Ranks

logger = logging.getLogger(__name__)

# From this size on, what checkpointing saves in memory is worth a second forward on a CPU too.
_LARGE_MODEL_PARAMETERS = 200_000_000


class Policy:
    """Network and trained weights. Made by `Policy.load`."""

    def __init__(
        self,
        model: Any,
        *,
        settings: ModelSettings,
        dtype: torch.dtype,
        activation_checkpointing: Literal["auto"] | bool,
        chunk_tokens: int | None = None,
    ) -> None:
        """`model` is a causal LM of transformers, in peft's wrapper if LoRA is trained."""
        self._model = model
        self._causal_lm: Any = model.get_base_model() if settings.tuning == "lora" else model
        self._settings = settings
        self.tuning = settings.tuning
        self._activation_checkpointing = activation_checkpointing
        self.dtype = dtype  # of the matrix products
        self.pads = False  # its micro-batches have a row for each trajectory: packable.py says why
        self.network = Network(self._causal_lm, dtype=dtype, chunk_tokens=chunk_tokens)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        settings: ModelSettings,
        *,
        seed: int,
        activation_checkpointing: Literal["auto"] | bool,
        device: str = "auto",
        chunk_tokens: int | None = None,
        window: int | None = None,
        ranks: "Ranks | None" = None,
    ) -> "Policy":
        """Load the student. Raises ModelError if it cannot be loaded, or not be trained here.

        `folder` is where the model that settings.path names lies. `seed` is that of LoRA's first
        weights. `device`: "auto" is "cuda" where there is one, else "cpu". `chunk_tokens` go
        through the LM head at once; None: as many as the vocabulary allows. `window`: tokens of the
        longest trajectory, by which some models choose their positions. `ranks`: the processes over
        which the weights are cut, if these want that.
        """
        on = _resolve_device(device)
        dtype = _resolve_dtype(settings.dtype, on)
        full = settings.tuning == "full"
        stored = torch.promote_types(dtype, torch.float32) if full else dtype
        is_sharded = ranks is not None and ranks.is_sharded
        model = load_causal_lm(str(folder), stored, window=window)
        model = model if is_sharded else model.to(on)  # no device may have room for all of it
        if not full:
            rank = settings.qlora_rank
            alpha = 2 * rank if settings.qlora_alpha is None else settings.qlora_alpha
            model = add_lora(model, path=str(folder), rank=rank, alpha=alpha, seed=seed)
        policy = cls(
            model,
            settings=settings,
            dtype=dtype,
            activation_checkpointing=activation_checkpointing,
            chunk_tokens=chunk_tokens,
        )
        policy._set_modes(on)
        make_lean(policy.network.body)
        policy.network.logit_map = policy._find_logit_map()
        reason = why_not_packed(policy.network)
        policy.pads = reason is not None
        if reason is not None:
            logger.info("%s: trajectories are padded, not packed: %s", settings.path, reason)
        policy.network.skips_rows = bears_skipping(policy.network)
        if ranks is not None and ranks.is_sharded:
            from rnow.learner.ranks.sharding import shard

            whole = set() if full else set(policy.trained_parameters().values())
            shard(policy.network, ranks, whole=whole)
        return policy

    @property
    def device(self) -> torch.device:
        return self.network.head.weight.device

    def action_logprobs(
        self, token_ids: Tensor, *, position_ids: Tensor, action_index: Tensor
    ) -> Tensor:
        """Return log p of the tokens at `action_index` given those before them: network.py."""
        logprobs: Tensor = self.network(token_ids, position_ids, action_index)
        return logprobs

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer moves. A tied LM head is in it once, as the embedding."""
        return {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the trained weights: the live tensors, so save them before the next update."""
        return {name: parameter.detach() for name, parameter in self.trained_parameters().items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` gave, bit for bit, or raise CheckpointError."""
        parameters = self.trained_parameters()
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        check_student(state, shapes, what="")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def save(
        self, directory: Path, *, adapter_dtype: str | None = None, is_writer: bool = True
    ) -> None:
        """Write what an engine loads: a whole model with weights in `dtype`, or an adapter, in
        `adapter_dtype`; None: as it is trained.

        Of several ranks all call it, and one writes.
        """
        if self.tuning == "lora":
            if is_writer:
                on = torch.device("cpu")
                rounded = None if adapter_dtype is None else _resolve_dtype(adapter_dtype, on)
                save_adapter(self._model, directory, dtype=rounded)
        else:
            state = rounded_state(self._causal_lm, self.dtype, keep=is_writer)
            if is_writer:
                save_causal_lm(self._causal_lm, directory, self.dtype, state=state)

    def _set_modes(self, on: torch.device) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._model.eval()
        wanted = self._activation_checkpointing
        if wanted == "auto":
            num_parameters = sum(p.numel() for p in self._causal_lm.parameters())
            wanted = on.type != "cpu" or num_parameters >= _LARGE_MODEL_PARAMETERS
        if not wanted:
            return
        lm = self._causal_lm  # whose method has its new name from transformers 5.24 on
        enable = getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "preserve_rng_state": False})
        # A layer checkpoints itself in training mode alone. Only its own flag is set: whatever is
        # inside it, dropout among it, stays in eval mode.
        for module in self._causal_lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True

    def _find_logit_map(self) -> LogitMap:
        """Return what the model does to its LM head's products before the softmax.

        Refuses a model that does what is not known here: every log-probability would be wrong, and
        nothing would say so.
        """
        network = self.network
        token_ids = torch.arange(8, device=self.device)[None] % network.head.weight.shape[0]
        with torch.no_grad(), network.autocast():
            theirs = self._causal_lm(input_ids=token_ids, use_cache=False).logits
            output = network.body(input_ids=token_ids, use_cache=False)
            ours = network.head(output.last_hidden_state)
        if not bool(torch.isfinite(theirs).all()):
            raise ModelError(
                f"model.path: {self._settings.path} cannot be trained: its logits are not finite; "
                "its weights are damaged (fetch them again), or too large for model.dtype"
            )
        found = find_logit_map(self._causal_lm.config.get_text_config(), ours, theirs)
        if found is None:
            raise ModelError(
                f"model.path: {self._settings.path} cannot be trained: "
                f"{type(self._causal_lm).__name__} does more than apply its LM head, scale and cap "
                f"to get logits (difference up to {float((ours - theirs).abs().max()):.2g}); "
                "use another architecture"
            )
        return found


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
        "float64": torch.float64,
    }[name]
