"""The figures of a model that decide how much memory it takes, and how long it works.

    config.json ─▶ transformers' configuration ─┬─▶ sizes, of which activations and caches are made
                                                └─▶ its network on torch's meta device: weights

Any family that transformers knows has figures: weights are counted on the network itself, without
one of them being made. Where no network can be made of the file, they are what its files hold. What
a plan can only bound from above is said in `notes`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rnow.errors import ModelError
from rnow.networks.experts import num_chosen_experts, num_experts
from rnow.networks.rope import config_errors
from rnow.plan.kv_cache import CacheLayers, read_cache_layers
from rnow.plan.weight_files import count_weight_bytes, index_bytes
from rnow.runtime.logs import quiet_transformers

# Bytes of a weight as it is published quantized; of others the files say it.
_NARROW_BYTES = {"fp8": 1.0, "mxfp4": 17 / 32, "nvfp4": 9 / 16}
_SERVER_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model; sizes are those of its text network.

    ModelFigures(path="Qwen/Qwen3-30B-A3B", hidden_size=2048, intermediate_size=6144, num_layers=48,
                 num_linear_parameters=29896998912, num_routed_parameters=28991029248, …)
    """

    path: str  # as config.yml names it
    hidden_size: int
    intermediate_size: int  # of a mixture: the experts that a token meets, side by side
    num_layers: int
    query_size: int  # of all heads
    kv_size: int  # width of the keys of one token in one layer; the values' is the same
    vocab_size: int
    is_tied: bool  # the LM head is the embedding
    num_chosen: int  # experts that a token meets in a layer; 0: no mixture

    num_linear_parameters: int  # of all layers' matrices: what FP8 makes smaller
    num_routed_parameters: int  # of these, in experts of which a token meets some
    num_unmet_parameters: int  # of these, what one token does not meet
    num_other_parameters: int  # tables, norms, biases
    num_beside_parameters: int  # that only servers load: what sees or hears
    lora_width: int  # an adapter's weights for each rank

    caches: tuple[CacheLayers, ...]
    divisors: tuple[int, ...]  # numbers of heads and widths, which GPUs share out
    quantization: str | None  # of the weights as they are published
    file_bytes: int | None  # of the weights as they are published; None: not here
    notes: tuple[str, ...] = ()  # what is an upper bound, or unknown

    @property
    def num_parameters(self) -> int:
        """Everything in memory. A tied LM head is counted once, though some files hold it twice."""
        return self.num_linear_parameters + self.num_other_parameters

    @property
    def num_active_parameters(self) -> int:
        """What one token meets: of a mixture the experts that are chosen for it."""
        return self.num_parameters - self.num_unmet_parameters

    def untied(self) -> "ModelFigures":
        """Return the same with an LM head of its own."""
        if not self.is_tied:
            return self
        head = self.vocab_size * self.hidden_size
        return replace(self, is_tied=False, num_other_parameters=self.num_other_parameters + head)

    def num_lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter on every linear layer but the LM head."""
        return rank * self.lora_width

    def weight_bytes(self, dtype_bytes: int, *, quantization: Literal["fp8"] | None) -> int:
        """Return the bytes of the weights in a server.

        FP8 is for the layers' matrices alone, as in vLLM, and MXFP4 for experts.
        """
        method = self.quantization or quantization
        rest = (self.num_other_parameters + self.num_beside_parameters) * dtype_bytes
        if method is None:
            return self.num_linear_parameters * dtype_bytes + rest
        if method not in _NARROW_BYTES and self.file_bytes is not None:
            return self.file_bytes
        narrow = self.num_linear_parameters
        if method == "mxfp4":
            narrow = self.num_routed_parameters
        wide = self.num_linear_parameters - narrow
        return int(narrow * _NARROW_BYTES.get(method, dtype_bytes)) + wide * dtype_bytes + rest

    def kv_bytes(
        self, num_tokens: int, *, dtype_bytes: int = 2, num_shards: int = 1, scheduled: int = 0
    ) -> int:
        """Return the bytes of what is remembered of one text of `num_tokens`, on each of
        `num_shards` GPUs of a vLLM server that reads `scheduled` tokens at once.
        """
        return sum(
            layers.num_bytes(
                num_tokens, dtype_bytes=dtype_bytes, num_shards=num_shards, scheduled=scheduled
            )
            for layers in self.caches
        )

    def local_kv_bytes(self, num_tokens: int, *, dtype_bytes: int) -> int:
        """Return the same of the local engine, which keeps whole keys and values of every token."""
        return num_tokens * dtype_bytes * sum(layers.local_numbers for layers in self.caches)

    def tensor_parallel_sizes(self) -> tuple[int, ...]:
        """Return over how many GPUs vLLM can cut the model."""
        heads = [layers.num_heads for layers in self.caches if layers.num_heads > 1]
        return tuple(
            size
            for size in _SERVER_SIZES
            if all(number % size == 0 for number in self.divisors)
            and all(number % size == 0 or size % number == 0 for number in heads)
        )


def load_figures(path: str, folder: Path) -> ModelFigures:
    """Read `folder`/config.json of the model that config.yml calls `path`."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    file_bytes = index_bytes(folder) or count_weight_bytes(folder)
    return read_figures(path, config, file_bytes=file_bytes)


def read_figures(
    path: str, config: Mapping[str, Any], *, file_bytes: int | None = None
) -> ModelFigures:
    """Read a config.json; ModelError where sizes are missing of which memory is made."""
    return _read_figures(path, json.dumps(config, sort_keys=True), file_bytes)


@lru_cache(maxsize=64)
def _read_figures(path: str, config_json: str, file_bytes: int | None) -> ModelFigures:
    from rnow.learner.reach import Reach, count_weights

    config = json.loads(config_json)
    notes: list[str] = []
    network = _network_config(path, config)
    text = network.get_text_config()
    try:
        counted = count_weights(network, file=f"{path}: config.json")
    except ModelError as error:
        if file_bytes is None:
            raise
        notes.append(f"weights are what its files hold ({error})")
        counted = Reach(num_adapted=file_bytes // 2, num_experts=0, num_tables=0, num_others=0)
    caches, bounds = read_cache_layers(text)
    quantization = (config.get("quantization_config") or {}).get("quant_method")
    if quantization not in (None, *_NARROW_BYTES) and file_bytes is None:
        notes.append(f"its weights, quantized by {quantization}, are counted as if they were not")
    num_all, num_met = num_experts(text), num_chosen_experts(text)
    heads = text.num_attention_heads
    return ModelFigures(
        path=path,
        hidden_size=text.hidden_size,
        intermediate_size=_active_width(text),
        num_layers=text.num_hidden_layers,
        query_size=max(heads * _head_dim(text), _linear_width(text, "value")),
        kv_size=max(_kv_heads(text) * _head_dim(text), _linear_width(text, "key")),
        vocab_size=text.vocab_size,
        is_tied=bool(getattr(text, "tie_word_embeddings", False)),
        num_chosen=num_met,
        num_linear_parameters=counted.num_adapted + counted.num_experts,
        num_routed_parameters=counted.num_routed,
        num_unmet_parameters=counted.num_routed * (num_all - num_met) // max(1, num_all),
        num_other_parameters=counted.num_tables + counted.num_others,
        num_beside_parameters=counted.num_beside,
        lora_width=counted.lora_width,
        caches=caches,
        divisors=_divisors(text),
        quantization=quantization,
        file_bytes=file_bytes,
        notes=(*notes, *bounds),
    )


def _network_config(path: str, config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration, with all that it adds to the file."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            network = AutoConfig.for_model(**config)
        text = network.get_text_config()
    except config_errors() as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: config.json cannot be read: {first}") from error
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [key for key in sizes if not isinstance(getattr(text, key, None), int)]
    if missing:
        raise ModelError(f"{path}: its config.json has no whole number as {', '.join(missing)}")
    return network


def _head_dim(text: Any) -> int:
    if latent := getattr(text, "qk_nope_head_dim", None):
        return int(latent + text.qk_rope_head_dim)
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _kv_heads(text: Any) -> int:
    heads = getattr(text, "num_key_value_heads", None)
    return heads if isinstance(heads, int) and heads else int(text.num_attention_heads)


def _linear_width(text: Any, kind: Literal["key", "value"]) -> int:
    """Return the width of linear attention's keys or values; 0 where there is none."""
    heads = getattr(text, f"linear_num_{kind}_heads", None) or 0
    return int(heads * (getattr(text, f"linear_{kind}_head_dim", None) or 0))


def _active_width(text: Any) -> int:
    """Return the widest MLP that a token meets."""
    dense = _width(text, "intermediate_size") or 4 * text.hidden_size
    if not num_experts(text):
        return dense
    each = _width(text, "moe_intermediate_size") or dense
    shared = _width(text, "shared_expert_intermediate_size") or each * (
        _width(text, "n_shared_experts") or _width(text, "num_shared_experts")
    )
    has_dense = _width(text, "first_k_dense_replace") or getattr(text, "mlp_only_layers", None)
    mixture = num_chosen_experts(text) * each + shared
    return max(dense, mixture) if has_dense else mixture


def _width(text: Any, name: str) -> int:
    value = getattr(text, name, None) or 0
    return int(max(value, default=0) if isinstance(value, list | tuple) else value)


def _divisors(text: Any) -> tuple[int, ...]:
    names = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    widths = [_width(text, name) for name in names]
    linear = [getattr(text, f"linear_num_{kind}_heads", None) or 0 for kind in ("key", "value")]
    return tuple(number for number in (text.num_attention_heads, *widths, *linear) if number)
