"""Forwards of one set of weights: read a text, decode many sequences side by side.

Nothing here knows of asyncio, sessions or versions. What keeps the bits of a sequence independent
of its neighbours (`LocalEngine`'s hard promise) is decided here and in attention.py:

- A text is read alone, in pieces cut at fixed places counted from its own beginning.
- Decoding runs one of a few numbers of rows, of which `invariant_sizes` has found that they give
  the same bits; rows without a sequence read token 0. A matrix kernel is chosen by its shape.
- Each row's attention goes over blocks of keys of a fixed size.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rnow.engines.local.cache import KeyValues, RowCache
from rnow.engines.local.sampling import draw_tokens, uniform_stream
from rnow.networks.experts import has_experts

MIN_ROWS = 16  # below, matrix kernels change with the place and the number of rows
_ROWS_STEP = 8
_PIECE_TOKENS = 4096  # of one forward
_PROMPT_CACHE_BYTES = 2**28


def read(
    model: PreTrainedModel, token_ids: Sequence[int], past: KeyValues
) -> tuple[KeyValues, Tensor]:
    """Read `token_ids` after `past`.

    Returns the keys and values of both, and the last token's logits [1, vocab].
    """
    cache = DynamicCache(past)
    last = torch.tensor([-1], device=next(model.parameters()).device)
    for piece in pieces(len(token_ids)):
        # Only the last piece's logits are wanted; one position of the others costs next to nothing.
        output = forward_piece(model, token_ids[piece], cache, logits_to_keep=last)
    return tuple((layer.keys, layer.values) for layer in cache.layers), output.logits[0]


def pieces(num_tokens: int) -> Iterator[slice]:
    """Cut a text to bound a forward's memory; the cuts depend on the text alone."""
    for start in range(0, num_tokens, _PIECE_TOKENS):
        yield slice(start, min(start + _PIECE_TOKENS, num_tokens))


def forward_piece(network: nn.Module, token_ids: Sequence[int], cache: Any, **kept: Tensor) -> Any:
    """Read one piece into `cache`; return the network's output."""
    device = next(network.parameters()).device
    begin = cache.get_seq_length()
    return network(
        input_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.arange(begin, begin + len(token_ids), device=device)[None],
        use_cache=True,
        **_holding(network, cache),
        **kept,
    )


def _holding(model: nn.Module, cache: Any) -> dict[str, Any]:
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

    def __contains__(self, token_ids: Sequence[int]) -> bool:
        return tuple(token_ids) in self._entries

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
    """Sequences that decode together, in the first rows of as few as may be; they come and go
    between steps."""

    def __init__(self, model: PreTrainedModel, sizes: Sequence[int]) -> None:
        """`sizes`: the numbers of rows that a step may run, ascending; the last is the most."""
        self._model = model
        self._device = next(model.parameters()).device
        self._sizes = sizes
        self._rows: list[DecodingRow] = []
        self._cache = RowCache(sizes[-1])

    def clear(self) -> None:
        """Forget all sequences, whatever state they are in."""
        self._rows = []
        self._cache.clear()

    @property
    def is_full(self) -> bool:
        return len(self._rows) == self._sizes[-1]

    def add(self, row: DecodingRow, key_values: KeyValues) -> None:
        self._cache.put(len(self._rows), key_values)
        self._rows.append(row)

    def remove(self, row: DecodingRow) -> KeyValues:
        """Take a sequence out; return the keys and values of its `length` tokens."""
        index = self._rows.index(row)
        key_values = self._cache.take(index, row.length)
        last = self._rows.pop()
        if last is not row:
            self._cache.put(index, self._cache.take(len(self._rows), last.length))
            self._rows[index] = last
        if not self._rows:
            self._cache.clear()
        return key_values

    def forward(self) -> Tensor:
        """Read every sequence's last token; return what may follow, logits [sequences, vocab]."""
        size = next(size for size in self._sizes if size >= len(self._rows))
        idle = [0] * (size - len(self._rows))
        token_ids = [row.token_ids[-1] for row in self._rows] + idle
        position_ids, mask = self._cache.place([row.length for row in self._rows] + idle)
        output = self._model(
            input_ids=torch.tensor(token_ids, device=self._device)[:, None],
            position_ids=position_ids,
            attention_mask=mask,
            use_cache=True,
            **_holding(self._model, self._cache),
        )
        for row in self._rows:
            row.length += 1
        logits: Tensor = output.logits[: len(self._rows), 0]
        return logits

    def step(self) -> None:
        """Give every sequence its next token."""
        logits = self.forward()
        tokens, logprobs = draw_tokens(
            logits,
            uniforms=[row.uniforms.random() for row in self._rows],
            temperatures=[row.temperature for row in self._rows],
        )
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)


def invariant_sizes(model: PreTrainedModel, num_rows: int) -> tuple[int, ...]:
    """Return the numbers of rows, `num_rows` the last, that all give a sequence the same bits in
    every row; none if `num_rows` itself does not.

    Two cases are known where it does not. Torch may cut an elementwise operation among threads at a
    place that is no multiple of the vector length, and computes what lies at the cut by other code
    (seen with 3 threads); that is tried here. A mixture of experts runs each expert on as many rows
    as chose it, so that the shape follows the neighbours.
    """
    if has_experts(model.config.get_text_config()):
        return ()
    expected = _trial(model, num_rows)
    if not bool((expected == expected[0]).all()):
        return ()
    fewer = [
        size
        for size in range(MIN_ROWS, num_rows, _ROWS_STEP)
        if bool((_trial(model, size) == expected[0]).all())
    ]
    return (*fewer, num_rows)


def _trial(model: PreTrainedModel, num_rows: int) -> Tensor:
    """Decode one step of so many equal sequences; logits [rows, vocab]."""
    batch = DecodingBatch(model, (num_rows,))
    key_values, _ = read(model, [0, 1, 2], ())
    for _ in range(num_rows):
        row = DecodingRow(length=3, uniforms=uniform_stream(0), temperature=1.0, token_ids=[1])
        batch.add(row, key_values)
    return batch.forward()
