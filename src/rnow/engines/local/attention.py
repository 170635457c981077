"""Attention whose bits do not depend on neighbours: what `LocalEngine` registers with transformers.

Two cases, told apart by the mask, which only decoding passes:

    reading   one sequence alone, any number of new tokens: torch's own fused attention. Alone,
              its shape is a function of the sequence, so its bits are too.
    decoding  many sequences, one new token each, keys padded to the longest: blocks of
              `KEY_BLOCK` keys, the parts of the softmax added up in order.

Why blocks: how a matrix kernel cuts a long sum into parts depends on the *padded* length (on MKL
from about 300 keys on), and that comes from the neighbours. Here every kernel sees `KEY_BLOCK` keys
whatever runs beside; a block that is all padding for a row adds exact zeros to it.

Left out: sliding windows, soft caps, sinks. A model that asks for one is refused, never run
without.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rnow.errors import ModelError

ATTENTION_NAME = "rnow_blocks"
KEY_BLOCK = 128
# What some models hand to their attention and this one does not do.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")


def attend(
    module: nn.Module,
    query: Tensor,  # [batch, heads, new, head]
    key: Tensor,  # [batch, kv heads, keys, head]
    value: Tensor,  # [batch, kv heads, keys, head]
    attention_mask: Tensor | None,  # decoding: [batch, 1, 1, keys], 0 or -inf
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the mixed values [batch, new, heads, head], transformers' attention interface."""
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ModelError(
                f"{type(module).__name__} uses {name}, which the local engine does not do: "
                "take a model with plain causal attention, or set engine.kind to vllm"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:
        return _attend_alone(query, key, value, scale), None
    return _attend_in_blocks(query, key, value, attention_mask, scale), None


def _attend_alone(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    num_new, num_keys = query.shape[2], key.shape[2]
    mask = None
    if (
        1 < num_new < num_keys
    ):  # the new tokens are the last ones; is_causal would take them as the first
        mask = torch.ones(num_new, num_keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(num_keys - num_new)
    mixed = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=1 < num_new == num_keys,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).contiguous()


def _attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> Tensor:
    batch, heads, _, head_dim = query.shape
    kv_heads, num_keys = key.shape[1], key.shape[2]
    # Query heads that share a key head are the rows of one product: keys are never repeated in
    # memory.
    queries = (query * scale).reshape(batch * kv_heads, heads // kv_heads, head_dim)
    keys = key.reshape(batch * kv_heads, num_keys, head_dim).transpose(1, 2)
    values = value.reshape(batch * kv_heads, num_keys, head_dim)

    blocks = []
    for start in range(0, num_keys, KEY_BLOCK):
        part = torch.bmm(queries, keys[:, :, start : start + KEY_BLOCK]).float()
        part.view(batch, kv_heads, -1, KEY_BLOCK).add_(mask[..., start : start + KEY_BLOCK])
        blocks.append(part)
    largest = blocks[0].amax(-1, keepdim=True)
    for part in blocks[1:]:
        largest = torch.maximum(largest, part.amax(-1, keepdim=True))

    mixed = torch.zeros_like(queries, dtype=torch.float32)
    total = torch.zeros_like(largest)
    for index, part in enumerate(blocks):
        weights = part.sub_(largest).exp_()
        total += weights.sum(-1, keepdim=True)
        start = index * KEY_BLOCK
        mixed += torch.bmm(weights.to(value.dtype), values[:, start : start + KEY_BLOCK])
    return (mixed / total).to(query.dtype).view(batch, 1, heads, head_dim)


AttentionInterface.register(ATTENTION_NAME, attend)
