"""The figures of a model's config.json that decide how much memory it takes.

Only dense decoders of one plan are known here: embedding, layers of grouped-query attention and a
gated MLP, LM head. For others (mixtures of experts, layers of several kinds) no number is made up:
reading them is a ModelError, and whoever asked has to do without an estimate.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rnow.errors import ModelError

# model_type -> whether q, k, v have a bias; whether each head's q and k are normalized. None: the
# file says it, as attention_bias.
_FAMILIES: dict[str, tuple[bool | None, bool]] = {
    "llama": (None, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (None, True),
}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OTHERS = ("vocab_size", "max_position_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model.

    ModelFigures(path="Qwen/Qwen3-8B", hidden_size=4096, intermediate_size=12288, num_layers=36,
                 num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=151936, is_tied=False,
                 max_tokens=40960, num_layer_extras=8448, quantization=None)
    """

    path: str  # as config.yml names it
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool  # the LM head is the embedding
    max_tokens: int  # longest sequence that the model's positions reach
    num_layer_extras: int  # parameters of a layer that are in no matrix: norms, biases
    quantization: Literal["fp8"] | None  # of the weights as they are published

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys of one token in one layer; the values' is the same."""
        return self.num_kv_heads * self.head_dim

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the matrices of one layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return (
            (hidden, self.query_size),
            (hidden, self.kv_size),
            (hidden, self.kv_size),
            (self.query_size, hidden),
            (hidden, inner),
            (hidden, inner),
            (inner, hidden),
        )

    @property
    def num_linear_parameters(self) -> int:
        """Parameters of all layers' matrices: what FP8 makes smaller and LoRA adapts."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.linear_shapes)

    @property
    def num_parameters(self) -> int:
        """Everything in memory. A tied LM head is counted once, though some files hold it twice."""
        tables = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        norms = self.num_layers * self.num_layer_extras + self.hidden_size
        return self.num_linear_parameters + tables + norms

    def num_lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter on every linear layer but the LM head."""
        return self.num_layers * rank * sum(map(sum, self.linear_shapes))

    def weight_bytes(self, dtype_bytes: int, *, quantization: Literal["fp8"] | None) -> int:
        """Return the bytes of the weights; FP8 is for the layers' matrices alone, as in vLLM."""
        narrow = quantization or self.quantization
        linear_bytes = 1 if narrow == "fp8" else dtype_bytes
        others = self.num_parameters - self.num_linear_parameters
        return self.num_linear_parameters * linear_bytes + others * dtype_bytes

    def kv_bytes(self, num_tokens: int, *, dtype_bytes: int = 2, num_shards: int = 1) -> int:
        """Return the bytes of the keys and values of `num_tokens`, on each of `num_shards` GPUs.

        Heads are not cut: more shards than heads hold some of them twice.
        """
        heads = -(-self.num_kv_heads // num_shards)
        return num_tokens * self.num_layers * 2 * heads * self.head_dim * dtype_bytes

    def tensor_parallel_sizes(self) -> tuple[int, ...]:
        """Return over how many GPUs vLLM can cut the model."""
        return tuple(
            size
            for size in (1, 2, 4, 8)
            if self.num_heads % size == 0
            and self.intermediate_size % size == 0
            and (self.num_kv_heads % size == 0 or size % self.num_kv_heads == 0)
        )


def load_figures(path: str, folder: Path) -> ModelFigures:
    """Read `folder`/config.json of the model that config.yml calls `path`."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return read_figures(path, config)


def read_figures(path: str, config: Mapping[str, Any]) -> ModelFigures:
    """Read a config.json; ModelError for what no memory is known of."""
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ModelError(
            f"{path}: the memory of model type {family} is not known here, "
            f"only that of {', '.join(_FAMILIES)}"
        )
    missing = [key for key in (*_SIZES, *_OTHERS) if not isinstance(config.get(key), int)]
    if missing:
        raise ModelError(f"{path}: its config.json has no whole number as {', '.join(missing)}")
    hidden, inner, layers, heads = (config[key] for key in _SIZES)
    head_dim = config.get("head_dim") or hidden // heads
    num_kv_heads = config.get("num_key_value_heads") or heads
    with_bias, with_head_norms = _FAMILIES[family]
    extras = 2 * hidden
    if with_bias or (with_bias is None and config.get("attention_bias")):
        extras += (heads + 2 * num_kv_heads) * head_dim
        extras += 0 if family == "qwen2" else hidden  # the output's; qwen2 has none
    if config.get("mlp_bias"):
        extras += 2 * inner + hidden
    if with_head_norms:
        extras += 2 * head_dim
    return ModelFigures(
        path=path,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        is_tied=bool(config.get("tie_word_embeddings", False)),
        max_tokens=_max_tokens(config),
        num_layer_extras=extras,
        quantization=_quantization(path, config),
    )


def _quantization(path: str, config: Mapping[str, Any]) -> Literal["fp8"] | None:
    quantized = config.get("quantization_config")
    if not quantized:
        return None
    method = quantized.get("quant_method")
    if method != "fp8":
        raise ModelError(
            f"{path}: the memory of weights quantized by {method} is not known here, only of fp8"
        )
    return "fp8"


def _max_tokens(config: Mapping[str, Any]) -> int:
    """Return the longest sequence; a `factor` of RoPE stretches the length it was trained at."""
    longest: int = config["max_position_embeddings"]
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "factor" in scaling:
        trained = scaling.get("original_max_position_embeddings", longest)
        longest = max(longest, int(scaling["factor"] * trained))
    return longest
