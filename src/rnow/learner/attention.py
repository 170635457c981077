"""Attention as the trainer runs it: torch's fused kernels, plain products where they cannot do it.

    plain, sliding windows       scaled_dot_product_attention, as transformers calls it
    float32 on a GPU             the same with each key head repeated for its query heads: for
                                 grouped heads torch has a fused kernel in bfloat16 alone, and plain
                                 products are 128 GiB for 32 heads and 32k tokens
    soft caps, sinks             products, a cap or one more score, softmax: Gemma 2, gpt-oss. The
                                 fused kernels would leave either out and say nothing

What a model asks beyond that is refused: an argument that is dropped is a wrong gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rnow.errors import ModelError

ATTENTION_NAME = "rnow_trainer"
# What masks already hold, or what changes nothing without a cache and a drop-out.
_HARMLESS = frozenset(
    {"sliding_window", "dropout", "position_ids", "use_cache", "cache_position", "is_causal"}
)


def attend(
    module: nn.Module,
    query: Tensor,  # [batch, heads, tokens, head]
    key: Tensor,  # [batch, kv heads, tokens, head]
    value: Tensor,  # [batch, kv heads, tokens, head]
    attention_mask: Tensor | None,  # True or 0: seen; None: plain causal
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,  # [heads], a score that takes its share and gives nothing
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the mixed values [batch, tokens, heads, head], transformers' attention interface."""
    unknown = sorted(
        name
        for name in set(kwargs) - _HARMLESS
        if kwargs[name] is not None and kwargs[name] is not False
    )
    if unknown:
        raise ModelError(
            f"{type(module).__name__} hands {', '.join(unknown)} to its attention, which the "
            "trainer does not know; use another architecture"
        )
    if softcap is not None or s_aux is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        mixed = _attend_plainly(query * scale, key, value, attention_mask, softcap, s_aux)
        return mixed.transpose(1, 2).contiguous(), None
    if query.dtype != torch.float32 or query.device.type == "cpu":
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling
        )
    mixed = scaled_dot_product_attention(
        query,
        *_repeated(query, key, value),
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scaling,
    )
    return mixed.transpose(1, 2).contiguous(), None


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    group = query.shape[1] // key.shape[1]
    return key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)


def _attend_plainly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    keys, values = _repeated(query, key, value)
    scores = (query @ keys.transpose(2, 3)).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    is_choice = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, float("-inf")) if is_choice else scores + mask
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]]
    return weights.to(values.dtype) @ values


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
