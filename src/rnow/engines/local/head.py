"""A model's LM head: log-probabilities of given tokens, and the favourites, from hidden states.

The head is the largest weight of a small model, and what it makes, [rows, vocabulary], the largest
tensor. It is read in blocks of words, by a running maximum and sum: once for all rows, and nothing
of that size exists. What a family does to the products (scales, caps) is done by its own code, a
block at a time; where that is more than mapping each logit, the head is left whole.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import DynamicCache, PreTrainedModel

from rnow.engines.local.batch import MIN_ROWS, forward_piece

_BLOCK_WORDS = 2048  # of 1,024 rows that is 8 MiB in float32: a cache's worth
_MAX_ROWS = 1024  # that go through it at once
_MAX_LOGITS = 2**26  # the same where it is left whole: 256 MB in float32
# How many rows are tried beside so many: a matrix kernel is chosen by its shape.
_FEW_ROWS, _MANY_ROWS = (16, 17, 24, 31, 64, 100, 128, 250, 256, 511), 640


class Head:
    """All that a model does behind its body, tried once for the ways in which it may be done.

    Where it is left whole, or where a trial fails, texts are not put together.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._vocab_size = int(model.config.get_text_config().vocab_size)
        if _name_of_plain_head(model) is not None:
            self._vocab_size = len(model.get_output_embeddings().weight)
        self._output: Any = None  # what such a body says; hidden states are put in its place
        self._blocks: Sequence[slice | None] = [None]
        parts = [
            slice(start, min(start + _BLOCK_WORDS, self._vocab_size))
            for start in range(0, self._vocab_size, _BLOCK_WORDS)
        ]
        if self._bears(parts):
            self._blocks = parts
        self.is_invariant = self._is_invariant()  # rows have the same bits whatever is beside them

    def with_weights_of(self, model: PreTrainedModel) -> "Head":
        """Return that of the same network with other weights: the shapes that were tried."""
        other = copy.copy(self)
        other._model = model
        if _name_of_plain_head(model) is None:
            other._blocks, other.is_invariant = [None], False
        return other

    def score(
        self, hidden: Tensor, following: Tensor, *, num_top: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p of `following`, the favourites' ids and their log p, in float32.

        `hidden` [rows, width], `following` [rows] int64; favourites [rows, num_top], best first.
        """
        size = _MAX_ROWS
        if self._blocks[0] is None:
            size = max(256, _MAX_LOGITS // self._vocab_size)
        num_parts = -(-len(hidden) // size)  # even, so that none has few rows
        parts = zip(hidden.tensor_split(num_parts), following.tensor_split(num_parts), strict=True)
        made = [self._score_rows(*part, num_top) for part in parts]
        logprobs, top_ids, top = (torch.cat(each) for each in zip(*made, strict=True))
        return logprobs, top_ids, top

    def _score_rows(
        self, hidden: Tensor, following: Tensor, num_top: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_rows = len(hidden)
        num_idle = max(0, MIN_ROWS - num_rows)
        hidden, wanted = pad(hidden, (0, 0, 0, num_idle)), pad(following, (0, num_idle))[:, None]
        lowest = torch.finfo(torch.float32).min  # finite: a block may hold nothing but -inf
        highest = hidden.new_full(wanted.shape, lowest, dtype=torch.float32)
        sums, chosen = torch.zeros_like(highest), torch.zeros_like(highest)
        top, top_ids = highest[:, :0], wanted[:, :0]
        for words in self._blocks:
            logits = self._logits(hidden, words).float()
            start = 0 if words is None else words.start
            place = wanted - start
            is_here = (place >= 0) & (place < logits.shape[1])
            here = logits.gather(1, place.clamp(0, logits.shape[1] - 1))
            chosen = torch.where(is_here, here, chosen)
            if num_top:
                best = logits.topk(min(num_top, logits.shape[1]), dim=1)
                top, top_ids = (
                    torch.cat([top, best.values], 1),
                    torch.cat([top_ids, best.indices + start], 1),
                )
                top, order = top.topk(min(num_top, top.shape[1]), dim=1)
                top_ids = top_ids.gather(1, order)
            former, highest = highest, torch.maximum(highest, logits.amax(1, keepdim=True))
            exponentials = logits.sub_(highest).exp_()
            sums.mul_((former - highest).exp_()).add_(exponentials.sum(1, keepdim=True))
            del logits, exponentials  # else the next block's exist beside them
        normalizers = sums.log_().add_(highest)
        logprobs = (chosen - normalizers).squeeze(1)
        return logprobs[:num_rows], top_ids[:num_rows], (top - normalizers)[:num_rows]

    def _logits(self, hidden: Tensor, words: slice | None) -> Tensor:
        """Return fresh logits [rows, words], by the model's own code; None: of all words."""
        model, tail = self._model, copy.copy(self._model)
        if self._output is None:
            self._output = forward_piece(model.base_model, [0], DynamicCache())
        output = type(self._output)(**{**self._output, "last_hidden_state": hidden[None]})
        tail._modules = {**model._modules, model.base_model_prefix: _Read(output)}
        if words is not None:
            tail._modules[_name_of_plain_head(model)] = _Words(model.get_output_embeddings(), words)
        ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        logits: Tensor = tail(input_ids=ids).logits
        return logits[0]

    def _bears(self, parts: Sequence[slice]) -> bool:
        """Whether blocks give what the whole gives."""
        if _name_of_plain_head(self._model) is None:
            return False
        hidden = self._some_hidden_states(MIN_ROWS)
        try:
            whole = self._logits(hidden, None).float()
            found = torch.cat([self._logits(hidden, words).float() for words in parts], 1)
        # A family's own code raises what it likes; whoever scores with it hears of it then.
        except Exception:
            return False
        return found.shape == whole.shape and torch.allclose(found, whole, rtol=1e-3, atol=1e-4)

    def _is_invariant(self) -> bool:
        """Whether a row has the same bits among few rows and among many.

        With two threads and a wide model, torch cuts a sum otherwise for 16 rows than for 600.
        """
        hidden = self._some_hidden_states(_MANY_ROWS)
        if self._blocks[0] is None:
            return False  # too much work to try
        for words in (self._blocks[0], self._blocks[-1]):
            many = self._logits(hidden, words)
            for count in _FEW_ROWS:
                some = slice(5, 5 + count)
                if not torch.equal(self._logits(hidden[some].clone(), words), many[some]):
                    return False
        return True

    def _some_hidden_states(self, num_rows: int) -> Tensor:
        weight = self._model.get_output_embeddings().weight
        drawn = torch.randn((num_rows, weight.shape[1]), generator=torch.Generator().manual_seed(0))
        return drawn.to(weight.device, weight.dtype)


def _name_of_plain_head(model: PreTrainedModel) -> str | None:
    """Return where an LM head stands that is a product and nothing beside; None: there is none."""
    head = model.get_output_embeddings()
    names = [name for name, part in model._modules.items() if part is head]
    return names[0] if names and type(head) is nn.Linear else None


class _Read(nn.Module):
    """Stands in a body's place: what it made of a text."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *given: Any, **asked: Any) -> Any:
        return self._output


class _Words(nn.Module):
    """Stands in an LM head's place: some of its words."""

    def __init__(self, head: nn.Linear, words: slice) -> None:
        super().__init__()
        self.weight = head.weight[words]
        self.bias = None if head.bias is None else head.bias[words]

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight, self.bias)
