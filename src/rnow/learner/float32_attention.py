"""Attention in float32 on a GPU, by torch's fused kernel for as many key heads as query heads.

transformers leaves grouped heads to torch, which has a fused kernel for them in bfloat16 alone. In
float32 it falls back to plain products, whose [heads, tokens, tokens] is 128 GiB for 32 heads and
32k tokens. With every key head repeated for its query heads another fused kernel takes it, for a
copy of keys and values of one layer.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "rnow_wide"


def attend(
    module: nn.Module,
    query: Tensor,  # [batch, heads, tokens, head]
    key: Tensor,  # [batch, kv heads, tokens, head]
    value: Tensor,  # [batch, kv heads, tokens, head]
    attention_mask: Tensor | None,  # None: plain causal
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the mixed values [batch, tokens, heads, head], transformers' attention interface."""
    group = query.shape[1] // key.shape[1]
    mixed = scaled_dot_product_attention(
        query,
        key.repeat_interleave(group, dim=1),
        value.repeat_interleave(group, dim=1),
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scaling,
    )
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
