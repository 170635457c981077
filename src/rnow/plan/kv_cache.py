"""What a layer remembers of a text, by the kind of layer: the KV cache of a vLLM server.

    full attention       keys and values of every token
    a sliding window     of the last tokens, and of those that are read at once
    a latent (MLA)       one narrow row a token for all heads, whole on every GPU of a server
    linear attention     a state of a fixed size, however long the text

A kind that is none of these is counted as full attention, which is never too little: that is said.
"""

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Any

from rnow.networks.layer_kinds import layer_kinds

_FULL, _STATE = "full_attention", "linear_attention"
# Kinds that keep a window, with the name of its size.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_STATES_A_TEXT = 2  # the one in use, and what vLLM's prefix cache keeps or its blocks round up to
_STATE_BYTES = 4  # a number of a state: in float32, whatever the model is in


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayers:
    """Layers that remember alike.

    CacheLayers(num_layers=36, num_heads=8, width=256, local_numbers=36 * 8 * 256)
    """

    num_layers: int
    num_heads: int  # that GPUs share out; 1: each has all of it
    width: int  # numbers of a head: of a token its key and value, of a text its state
    local_numbers: int  # that the local engine keeps of a token in all these layers
    window: int | None = None  # tokens; None: all
    is_state: bool = False

    def num_bytes(
        self, num_tokens: int, *, dtype_bytes: int, num_shards: int, scheduled: int
    ) -> int:
        """Return the bytes of one text on each GPU. Heads are not cut: more GPUs than heads hold
        some of them twice.
        """
        each = self.num_layers * ceil(self.num_heads / num_shards) * self.width
        if self.is_state:
            return each * _STATE_BYTES * _STATES_A_TEXT
        kept = num_tokens if self.window is None else min(num_tokens, self.window + scheduled)
        return each * dtype_bytes * kept


def read_cache_layers(text: Any) -> tuple[tuple[CacheLayers, ...], tuple[str, ...]]:
    """Return the layers of transformers' configuration of a text network, and what is a bound."""
    if getattr(text, "kv_lora_rank", None):
        return (_latent(text),), ()
    counts = Counter(layer_kinds(text))
    if shared := getattr(text, "num_kv_shared_layers", None):
        # The last layers read what the ones before keep.
        counts = Counter(layer_kinds(text)[: text.num_hidden_layers - shared])
    layers: list[CacheLayers] = []
    unknown = []
    for kind, count in sorted(counts.items()):
        if kind == _STATE and (state := _state_width(text)):
            heads = text.linear_num_value_heads
            layers.append(
                CacheLayers(
                    num_layers=count,
                    num_heads=heads,
                    width=ceil(state / heads),
                    local_numbers=0,
                    is_state=True,
                )
            )
            continue
        window = getattr(text, _WINDOWS.get(kind, ""), None) if kind in _WINDOWS else None
        layers.append(_attention(text, count, window=window))
        if kind != _FULL and window is None:
            unknown.append(kind)
    said = f"layers of kind {', '.join(unknown)} are counted as full attention, an upper bound"
    return tuple(layers), (said,) if unknown else ()


def _attention(text: Any, count: int, *, window: int | None) -> CacheLayers:
    heads = getattr(text, "num_key_value_heads", None)
    num_heads = heads if isinstance(heads, int) and heads else text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if window is None:
        # Some families have other heads where all tokens are kept.
        num_heads = getattr(text, "num_global_key_value_heads", None) or num_heads
        head_dim = getattr(text, "global_head_dim", None) or head_dim
    return CacheLayers(
        num_layers=count,
        num_heads=num_heads,
        width=2 * head_dim,
        local_numbers=count * num_heads * 2 * head_dim,
        window=window,
    )


def _latent(text: Any) -> CacheLayers:
    rope = text.qk_rope_head_dim
    keys_and_values = text.qk_nope_head_dim + rope + text.v_head_dim
    # Sparse attention keeps a key of its own to choose by.
    width = text.kv_lora_rank + rope + (getattr(text, "index_head_dim", None) or 0)
    layers = text.num_hidden_layers
    return CacheLayers(
        num_layers=layers,
        num_heads=1,
        width=width,
        local_numbers=layers * text.num_attention_heads * keys_and_values,
    )


def _state_width(text: Any) -> int:
    """Return the numbers of one layer's state; 0 where the file does not say them."""
    names = [f"linear_{part}" for part in ("num_key_heads", "key_head_dim")]
    names += [f"linear_{part}" for part in ("num_value_heads", "value_head_dim", "conv_kernel_dim")]
    sizes = [getattr(text, name, None) for name in names]
    if not all(sizes):
        return 0
    key_heads, key_dim, value_heads, value_dim, kernel = (int(size or 0) for size in sizes)
    convolved = (kernel - 1) * (2 * key_heads * key_dim + value_heads * value_dim)
    return value_heads * key_dim * value_dim + convolved
