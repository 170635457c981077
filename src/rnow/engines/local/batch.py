"""Forwards of one set of weights: read a text, score a text, decode many sequences side by side.

Nothing here knows of asyncio, sessions or versions. What keeps the bits of a sequence independent
of its neighbours (`LocalEngine`'s hard promise) is decided here and in attention.py:

- A text is read alone, in pieces cut at fixed places counted from its own beginning.
- Decoding always runs the same number of rows; rows without a sequence read token 0. A matrix
  kernel is chosen by its shape, and the shape never changes.
- Each row's attention goes over blocks of keys of a fixed size.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rnow.engines.base import ScoreRequest, Scores
from rnow.engines.local.cache import KeyValues, RowCache
from rnow.engines.local.sampling import draw_tokens, uniform_stream
from rnow.runtime.experts import has_experts

_MAX_LOGITS = 2**26  # of one forward: 256 MB in fp32
_PROMPT_CACHE_BYTES = 2**28


def read(
    model: PreTrainedModel, token_ids: Sequence[int], past: KeyValues
) -> tuple[KeyValues, Tensor]:
    """Read `token_ids` after `past`.

    Returns the keys and values of both, and the last token's logits [1, vocab].
    """
    cache = DynamicCache(past)
    last = torch.tensor([-1])
    for piece in _pieces(model, len(token_ids)):
        # Only the last piece's logits are wanted; one position of the others costs next to nothing.
        logits = _forward_piece(model, token_ids[piece], cache, keep=last)
    return tuple((layer.keys, layer.values) for layer in cache.layers), logits[0]


def score(model: PreTrainedModel, request: ScoreRequest) -> Scores:
    """Return what `Engine.score` promises; only asked positions reach the LM head."""
    token_ids, cache = request.token_ids, DynamicCache()
    logprobs, top_ids, top_logprobs = [], [], []
    for piece in _pieces(model, len(token_ids) - 1):
        # The logits at position i speak of token i + 1.
        first = max(request.start - 1, piece.start)
        keep = torch.arange(first, max(first, piece.stop)) - piece.start
        logits = _forward_piece(model, token_ids[piece], cache, keep=keep)[0]
        if len(keep) == 0:
            continue
        table = torch.log_softmax(logits.float(), dim=-1)
        following = torch.tensor(token_ids[first + 1 : piece.stop + 1], device=table.device)
        logprobs.append(table.gather(-1, following[:, None])[:, 0])
        best = table.topk(request.num_top, dim=-1)
        top_ids.append(best.indices)
        top_logprobs.append(best.values)
    return Scores(
        logprobs=torch.cat(logprobs).cpu().numpy(),
        top_ids=torch.cat(top_ids).cpu().numpy().astype(np.int32),
        top_logprobs=torch.cat(top_logprobs).cpu().numpy(),
    )


def _pieces(model: PreTrainedModel, num_tokens: int) -> Iterator[slice]:
    """Cut a text to bound a forward's memory; the cuts depend on model and text alone."""
    size = max(256, min(4096, _MAX_LOGITS // model.config.get_text_config().vocab_size))
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


def _forward_piece(
    model: PreTrainedModel, token_ids: Sequence[int], cache: DynamicCache, *, keep: Tensor
) -> Tensor:
    """Read one piece into `cache`; return logits [1, kept, vocab] of its positions `keep`."""
    device = next(model.parameters()).device
    begin = cache.get_seq_length()
    output = model(
        input_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.arange(begin, begin + len(token_ids), device=device)[None],
        use_cache=True,
        **_holding(model, cache),
        logits_to_keep=keep.to(device),
    )
    logits: Tensor = output.logits
    return logits


def _holding(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """Return the argument that hands over keys and values: `cache` from transformers 5.24 on."""
    is_new = "cache" in signature(type(model).forward).parameters
    return {"cache" if is_new else "past_key_values": cache}


class PromptCache:
    """The most recently read whole prompts, so that a group reads its prompt once.

    An entry is what reading that prompt alone gives, bit for bit: a hit changes time, nothing else.
    """

    def __init__(self, max_bytes: int = _PROMPT_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[tuple[int, ...], tuple[KeyValues, Tensor]] = OrderedDict()

    def read(self, model: PreTrainedModel, token_ids: Sequence[int]) -> tuple[KeyValues, Tensor]:
        key = tuple(token_ids)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        entry = read(model, token_ids, ())
        self._entries[key] = entry
        self._num_bytes += _num_bytes(entry)
        while self._num_bytes > self._max_bytes:
            _, old = self._entries.popitem(last=False)
            self._num_bytes -= _num_bytes(old)
        return entry


def _num_bytes(entry: tuple[KeyValues, Tensor]) -> int:
    return entry[1].nbytes + sum(keys.nbytes + values.nbytes for keys, values in entry[0])


@dataclass(slots=True, eq=False, kw_only=True)
class DecodingRow:
    """One sequence while it decodes; `token_ids` and `logprobs` grow by one a step."""

    length: int  # tokens whose keys and values are held; the last sampled one is not among them yet
    uniforms: np.random.Generator
    temperature: float
    token_ids: list[int] = field(default_factory=list)  # sampled so far
    logprobs: list[float] = field(default_factory=list)  # of each sampled token

    def draw(self, logits: Tensor) -> None:
        """Sample from `logits` [1, vocab]: the first token, right after reading."""
        tokens, logprobs = draw_tokens(
            logits, uniforms=[self.uniforms.random()], temperatures=[self.temperature]
        )
        self.token_ids += tokens
        self.logprobs += logprobs


class DecodingBatch:
    """A fixed number of rows that decode together; sequences come and go between steps."""

    def __init__(self, model: PreTrainedModel, num_rows: int) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._rows: list[DecodingRow | None] = [None] * num_rows
        self._num_running = 0
        self._cache = RowCache(num_rows)

    def clear(self) -> None:
        """Forget all sequences, whatever state they are in."""
        self._rows = [None] * len(self._rows)
        self._num_running = 0
        self._cache.clear()

    @property
    def is_full(self) -> bool:
        return self._num_running == len(self._rows)

    def add(self, row: DecodingRow, key_values: KeyValues) -> None:
        index = self._rows.index(None)
        self._cache.put(index, key_values)
        self._rows[index] = row
        self._num_running += 1

    def remove(self, row: DecodingRow) -> KeyValues:
        """Take a sequence out; return the keys and values of its `length` tokens."""
        index = self._rows.index(row)
        key_values = self._cache.take(index, row.length)
        self._rows[index] = None
        self._num_running -= 1
        if not self._num_running:
            self._cache.clear()
        return key_values

    def forward(self) -> Tensor:
        """Read every row's last sampled token; return what may follow, logits [rows, vocab]."""
        token_ids = [row.token_ids[-1] if row else 0 for row in self._rows]
        position_ids, mask = self._cache.place([row.length if row else 0 for row in self._rows])
        output = self._model(
            input_ids=torch.tensor(token_ids, device=self._device)[:, None],
            position_ids=position_ids,
            attention_mask=mask,
            use_cache=True,
            **_holding(self._model, self._cache),
        )
        for row in self._rows:
            if row:
                row.length += 1
        logits: Tensor = output.logits[:, 0]
        return logits

    def step(self) -> None:
        """Give every row its next token."""
        logits = self.forward()
        tokens, logprobs = draw_tokens(
            logits,
            uniforms=[row.uniforms.random() if row else 0.0 for row in self._rows],
            temperatures=[row.temperature if row else 1.0 for row in self._rows],
        )
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            if row:
                row.token_ids.append(token)
                row.logprobs.append(logprob)


def is_batch_invariant(model: PreTrainedModel, num_rows: int) -> bool:
    """Whether a sequence has the same bits in every row and beside any neighbours.

    Two cases are known where it has not. Torch may cut an elementwise operation among threads at a
    place that is no multiple of the vector length, and computes what lies at the cut by other code
    (seen with 3 threads); that is tried here. A mixture of experts runs each expert on as many rows
    as chose it, so that the shape follows the neighbours.
    """
    if has_experts(model.config.get_text_config()):
        return False
    batch = DecodingBatch(model, num_rows)
    key_values, _ = read(model, [0, 1, 2], ())
    for _ in range(num_rows):
        row = DecodingRow(length=3, uniforms=uniform_stream(0), temperature=1.0, token_ids=[1])
        batch.add(row, key_values)
    logits = batch.forward()
    return bool((logits == logits[0]).all())
