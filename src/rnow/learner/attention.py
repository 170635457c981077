"""Attention as the trainer runs it: torch's fused kernels, plain products where they cannot do it.

    plain                        scaled_dot_product_attention, as transformers calls it
    several sequences in a row,  on a GPU torch's own varlen_attn; else one call a sequence: no
    sliding windows              token of another is computed and masked away
    float32 on a GPU             the plain call with each key head repeated for its query heads: for
                                 grouped heads torch has a fused kernel in bfloat16 alone, and plain
                                 products are 128 GiB for 32 heads and 32k tokens
    soft caps, sinks             products, a cap or one more score, softmax: Gemma 2, gpt-oss. The
                                 fused kernels would leave either out and say nothing

Where sequences begin is said by `positions_of_row` around a forward (transformers finds it in the
positions itself, but some families, gpt-oss for one, do not hand these on to their masks). It
travels to the layers in the mask's place: none of [tokens, tokens] is built for a row of several,
and a checkpointed layer that runs again in backward finds it again.

What a model asks beyond that is refused: an argument that is dropped is a wrong gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    and_masks,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
    sdpa_mask,
)

from rnow.errors import ModelError

ATTENTION_NAME = "rnow_trainer"
# What masks already hold, or what changes nothing without a cache and a drop-out.
_HARMLESS = frozenset(
    {"sliding_window", "dropout", "position_ids", "use_cache", "cache_position", "is_causal"}
)


_POSITIONS: ContextVar[Tensor | None] = ContextVar("positions", default=None)


@contextmanager
def positions_of_row(position_ids: Tensor) -> Iterator[None]:
    """Say within a forward where its tokens stand, [rows, width]; sequences begin where that does
    not go on."""
    token = _POSITIONS.set(position_ids)
    try:
        yield
    finally:
        _POSITIONS.reset(token)


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """What a layer gets in a mask's place: which tokens of one row belong together."""

    starts: Tensor  # [sequences + 1] int32, the row's end the last; on the row's device
    lengths: tuple[int, ...]
    window: int | None  # newest tokens that one sees, itself among them; None: all


def attend(
    module: nn.Module,
    query: Tensor,  # [batch, heads, tokens, head]
    key: Tensor,  # [batch, kv heads, tokens, head]
    value: Tensor,  # [batch, kv heads, tokens, head]
    attention_mask: Tensor | Sequences | None,  # True or 0: seen; None: plain causal
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
    if isinstance(attention_mask, Sequences):
        if softcap is None and s_aux is None and _has_flash(query):
            return _attend_varlen(query, key, value, attention_mask, scaling), None
        # Split at once: the gradient of each slice by itself would be as wide as the row.
        lengths = list(attention_mask.lengths)
        parts = (torch.split(each, lengths, dim=2) for each in (query, key, value))
        mixed_parts = [
            attend(
                module,
                queries,
                keys,
                values,
                _window_mask(queries, attention_mask.window),
                scaling=scaling,
                softcap=softcap,
                s_aux=s_aux,
            )[0]
            for queries, keys, values in zip(*parts, strict=True)
        ]
        return torch.cat(mixed_parts, dim=1), None
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


def _has_flash(query: Tensor) -> bool:
    """Whether torch's flash kernel, which is under varlen_attn, takes such heads."""
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and is_half and query.shape[-1] <= 256


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = sequences.starts, max(sequences.lengths)
    mixed = varlen_attn(
        query[0].transpose(0, 1),  # [tokens, heads, head]
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        # How many tokens are seen to the left and to the right, the token itself not among them.
        window_size=(-1 if sequences.window is None else sequences.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(mixed, Tensor)
    return mixed[None]


def _window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """Return which tokens of one sequence see which; None: all that come before."""
    length = query.shape[2]
    if window is None or window >= length:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return seen.tril().triu(1 - window)


def _make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | Sequences | None:
    """Return what layers get as their mask: transformers' interface for masks."""
    positions = _POSITIONS.get()
    indices = None if positions is None else find_packed_sequence_indices(positions)
    if indices is not None:
        kwargs["allow_is_causal_skip"] = False
        mask_function = and_masks(mask_function, packed_sequence_mask_function(indices))
    if batch_size == 1 and q_length == kv_length and attention_mask is None:
        window = local_size if local_size is not None and local_size < q_length else None
        sequences = _find_sequences(mask_function, q_length, window, device)
        if sequences is None:
            return None
        if _is_described(sequences, mask_function):
            return sequences
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        local_size=local_size,
        attention_mask=attention_mask,
        device=device,
        **kwargs,
    )
    return mask


def _find_sequences(
    mask_function: Callable[..., Tensor], width: int, window: int | None, device: Any
) -> Sequences | None:
    """Return where sequences begin: at tokens that do not see the one before; None for one alone
    that sees all."""
    tokens = torch.arange(1, width, device=device)
    begins = ~_sees(mask_function, tokens, tokens - 1)
    inner = tokens[begins].tolist()
    if not inner and window is None:
        return None
    borders = [0, *inner, width]
    return Sequences(
        starts=torch.tensor(borders, dtype=torch.int32, device=device),
        lengths=tuple(end - start for start, end in pairwise(borders)),
        window=window,
    )


def _is_described(sequences: Sequences, mask_function: Callable[..., Tensor]) -> bool:
    """Whether each token sees just as far back as `sequences` says; other masks have other ends."""
    width = sum(sequences.lengths)
    tokens = torch.arange(width, device=sequences.starts.device)
    lengths = torch.tensor(sequences.lengths, device=tokens.device)
    furthest = sequences.starts[:-1].long().repeat_interleave(lengths)
    if sequences.window is not None:
        furthest = torch.maximum(furthest, tokens - sequences.window + 1)
    hidden = furthest > 0
    sees_furthest = _sees(mask_function, tokens, furthest).all()
    sees_beyond = _sees(mask_function, tokens[hidden], furthest[hidden] - 1).any()
    return bool(sees_furthest) and not bool(sees_beyond)


def _sees(mask_function: Callable[..., Tensor], tokens: Tensor, others: Tensor) -> Tensor:
    first = torch.zeros_like(tokens)  # row and head
    return mask_function(first, first, tokens, others).expand(tokens.shape)


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, _make_mask)
