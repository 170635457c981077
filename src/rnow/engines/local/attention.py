"""Attention whose bits do not depend on neighbours: what `LocalEngine` registers with transformers.

Two cases, told apart by the mask, which only decoding passes:

    reading   one sequence alone, any number of new tokens: torch's own fused attention. Alone,
              its shape is a function of the sequence, so its bits are too.
    decoding  many sequences, one new token each, keys padded to the longest: blocks of
              `KEY_BLOCK` keys, the parts of the softmax added up in order.

Why blocks: how a matrix kernel cuts a long sum into parts depends on the *padded* length (on MKL
from about 300 keys on), and that comes from the neighbours. Here every kernel sees `KEY_BLOCK` keys
whatever runs beside; a block that is all padding for a row adds exact zeros to it.

Sliding windows, soft caps and sinks are done as the model asks. What it asks beyond these is
refused, never left out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rnow.errors import ModelError

ATTENTION_NAME = "rnow_blocks"
KEY_BLOCK = 128
# What changes nothing here: there is no drop-out, and positions are in the keys already.
_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "cache_position", "is_causal"})


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a layer wants beyond plain causal attention."""

    window: int | None  # newest keys that a query sees, its own among them; None: all
    softcap: float | None
    sinks: Tensor | None  # [heads], a score that takes its share and gives nothing

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks is None


def attend(
    module: nn.Module,
    query: Tensor,  # [batch, heads, new, head]
    key: Tensor,  # [batch, kv heads, keys, head]
    value: Tensor,  # [batch, kv heads, keys, head]
    attention_mask: Tensor | None,  # decoding: [batch, 1, 1, keys], 0 or -inf
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the mixed values [batch, new, heads, head], transformers' attention interface."""
    for name in set(kwargs) - _HARMLESS:
        if kwargs[name] is not None and kwargs[name] is not False:
            raise ModelError(
                f"{type(module).__name__} uses {name}, which the local engine does not do: "
                "take another model, or set engine.kind to vllm"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = _Asked(sliding_window, softcap, s_aux)
    if attention_mask is None:
        return _attend_alone(query, key, value, scale, asked), None
    return _attend_in_blocks(query, key, value, attention_mask, scale, asked), None


def _attend_alone(query: Tensor, key: Tensor, value: Tensor, scale: float, asked: _Asked) -> Tensor:
    num_new, num_keys = query.shape[2], key.shape[2]
    is_cut = asked.window is not None and asked.window < num_keys
    mask = None
    # The new tokens are the last ones; is_causal would take them as the first.
    if is_cut or not asked.is_plain or 1 < num_new < num_keys:
        mask = torch.ones(num_new, num_keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(num_keys - num_new)
        if is_cut:
            assert asked.window is not None
            mask = mask.triu(num_keys - num_new - asked.window + 1)
    if not asked.is_plain:
        assert mask is not None
        return _attend_plainly(query * scale, key, value, mask, asked)
    mixed = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and num_new > 1,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).contiguous()


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, asked: _Asked
) -> Tensor:
    """What the fused kernels do not have: caps and sinks."""
    group = query.shape[1] // key.shape[1]
    scores = (query @ key.repeat_interleave(group, dim=1).transpose(2, 3)).float()
    if asked.softcap is not None:
        scores = torch.tanh(scores / asked.softcap) * asked.softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if asked.sinks is not None:
        sinks = asked.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value.repeat_interleave(group, dim=1)).transpose(1, 2).contiguous()


def _attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, asked: _Asked
) -> Tensor:
    batch, heads, _, head_dim = query.shape
    kv_heads, num_keys = key.shape[1], key.shape[2]
    # Query heads that share a key head are the rows of one product: keys are never repeated in
    # memory.
    queries = (query * scale).reshape(batch * kv_heads, heads // kv_heads, head_dim)
    keys = key.reshape(batch * kv_heads, num_keys, head_dim).transpose(1, 2)
    values = value.reshape(batch * kv_heads, num_keys, head_dim)
    if asked.window is not None:
        mask = _without_old_keys(mask, asked.window)

    blocks = []
    for start in range(0, num_keys, KEY_BLOCK):
        part = torch.bmm(queries, keys[:, :, start : start + KEY_BLOCK]).float()
        if asked.softcap is not None:
            part = torch.tanh(part / asked.softcap) * asked.softcap
        part.view(batch, kv_heads, -1, KEY_BLOCK).add_(mask[..., start : start + KEY_BLOCK])
        blocks.append(part)
    largest = blocks[0].amax(-1, keepdim=True)
    for part in blocks[1:]:
        largest = torch.maximum(largest, part.amax(-1, keepdim=True))

    mixed = torch.zeros_like(queries, dtype=torch.float32)
    total = torch.zeros_like(largest)
    if asked.sinks is not None:
        sinks = asked.sinks.float().view(kv_heads, -1, 1).repeat(batch, 1, 1)
        largest = torch.maximum(largest, sinks)
        total = torch.exp(sinks - largest)
    for index, part in enumerate(blocks):
        weights = part.sub_(largest).exp_()
        total += weights.sum(-1, keepdim=True)
        start = index * KEY_BLOCK
        mixed += torch.bmm(weights.to(value.dtype), values[:, start : start + KEY_BLOCK])
    return (mixed / total).to(query.dtype).view(batch, 1, heads, head_dim)


def _without_old_keys(mask: Tensor, window: int) -> Tensor:
    """Hide what lies before each row's newest `window` keys."""
    num_seen = (mask == 0).sum(-1, keepdim=True)
    places = torch.arange(mask.shape[-1], device=mask.device)
    return mask.masked_fill(places < num_seen - window, float("-inf"))


AttentionInterface.register(ATTENTION_NAME, attend)
