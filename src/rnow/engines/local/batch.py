"""Forwards of one set of weights: read a text, score a text, decode many sequences side by side.

Nothing here knows of asyncio, sessions or versions. What keeps the bits of a sequence independent
of its neighbours (`LocalEngine`'s hard promise) is decided here and in attention.py:

- A text is read alone, in pieces cut at fixed places counted from its own beginning.
- Decoding runs one of a few numbers of rows, of which `invariant_sizes` has found that they give
  the same bits; rows without a sequence read token 0. A matrix kernel is chosen by its shape.
- Each row's attention goes over blocks of keys of a fixed size.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rnow.engines.base import ScoreRequest, Scores
from rnow.engines.local.cache import KeyValues, RowCache
from rnow.engines.local.sampling import draw_tokens, uniform_stream
from rnow.records import IntArray
from rnow.runtime.experts import has_experts
from rnow.runtime.last_layer import only_rows

MIN_ROWS = 16  # below, matrix kernels change with the place and the number of rows
_ROWS_STEP = 8
_PIECE_TOKENS = 4096  # of one forward
_MAX_LOGITS = 2**26  # at once: 256 MB in fp32
_PROMPT_CACHE_BYTES = 2**28


def read(
    model: PreTrainedModel, token_ids: Sequence[int], past: KeyValues
) -> tuple[KeyValues, Tensor]:
    """Read `token_ids` after `past`.

    Returns the keys and values of both, and the last token's logits [1, vocab].
    """
    cache = DynamicCache(past)
    last = torch.tensor([-1], device=next(model.parameters()).device)
    for piece in _pieces(len(token_ids)):
        # Only the last piece's logits are wanted; one position of the others costs next to nothing.
        output = _forward_piece(model, token_ids[piece], cache, logits_to_keep=last)
    return tuple((layer.keys, layer.values) for layer in cache.layers), output.logits[0]


def score(model: PreTrainedModel, request: ScoreRequest) -> Scores:
    """Return what `Engine.score` promises; only asked positions reach the LM head."""
    token_ids, asked, cache = request.token_ids, request.asked, DynamicCache()
    logprobs, top_ids, top_logprobs = [], [], []
    for piece in _pieces(len(token_ids) - 1):
        # The logits at position i speak of token i + 1.
        wanted = asked[(asked > piece.start) & (asked <= piece.stop)] - 1
        keep = _kept(wanted, max(request.start - 1, piece.start), piece.stop)
        asked_rows = torch.from_numpy(keep - piece.start).to(model.device, torch.int64)
        with only_rows(model.base_model, asked_rows):
            output = _forward_piece(model.base_model, token_ids[piece], cache)
        for rows in _chunks(model, keep):
            logits = _logits(model, output, torch.from_numpy(rows - piece.start))
            is_wanted = np.isin(rows, wanted)
            if not is_wanted.all():
                logits = logits[torch.from_numpy(is_wanted).to(logits.device)]
            following = [token_ids[place + 1] for place in rows[is_wanted]]
            chosen = torch.tensor(following, device=logits.device, dtype=torch.int64)
            # On a CPU a few at a time: a second table of that size would be new memory each time.
            size = _ROWS_STEP if logits.device.type == "cpu" else len(rows)
            for some, ids in zip(torch.split(logits, size), torch.split(chosen, size), strict=True):
                table = torch.log_softmax(some.float(), dim=-1)
                logprobs.append(table.gather(-1, ids[:, None])[:, 0])
                best = table.topk(request.num_top, dim=-1)
                top_ids.append(best.indices)
                top_logprobs.append(best.values)
        if piece.stop >= asked[-1]:
            break
    return Scores(
        logprobs=torch.cat(logprobs).cpu().numpy(),
        top_ids=torch.cat(top_ids).cpu().numpy().astype(np.int32),
        top_logprobs=torch.cat(top_logprobs).cpu().numpy(),
    )


def _kept(wanted: IntArray, first: int, stop: int) -> IntArray:
    """Return the positions for the LM head: `wanted`, and up to MIN_ROWS of their neighbours.

    So few rows go through another matrix kernel, and a token would have other bits when asked with
    few others than when asked with many.
    """
    if len(wanted) == 0 or len(wanted) >= MIN_ROWS:
        return wanted
    return np.union1d(wanted, np.arange(max(first, stop - MIN_ROWS), stop, dtype=np.int32))


def _pieces(num_tokens: int) -> Iterator[slice]:
    """Cut a text to bound a forward's memory; the cuts depend on the text alone."""
    for start in range(0, num_tokens, _PIECE_TOKENS):
        yield slice(start, min(start + _PIECE_TOKENS, num_tokens))


def _chunks(model: PreTrainedModel, keep: IntArray) -> Iterator[IntArray]:
    """Cut positions to bound their logits' memory, evenly: none has fewer than MIN_ROWS alone."""
    if len(keep):
        size = max(256, _MAX_LOGITS // model.config.get_text_config().vocab_size)
        yield from np.array_split(keep, -(-len(keep) // size))


def _forward_piece(network: nn.Module, token_ids: Sequence[int], cache: Any, **kept: Tensor) -> Any:
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


def _logits(model: PreTrainedModel, output: Any, rows: Tensor) -> Tensor:
    """Return logits [rows, vocab] of what the body has read, by the model's own code: what it does
    to the LM head's products is its family's."""
    tail = copy.copy(model)
    tail._modules = {**model._modules, model.base_model_prefix: _Read(output)}
    hidden = output.last_hidden_state
    ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    logits: Tensor = tail(input_ids=ids, logits_to_keep=rows.to(hidden.device)).logits
    return logits[0]


class _Read(nn.Module):
    """Stands in a body's place: what it made of a piece."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, **asked: Any) -> Any:
        return self._output


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
