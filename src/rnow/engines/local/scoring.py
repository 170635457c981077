"""Log-probabilities of given tokens: each text is read alone, the LM head for several at once.

    text ──body──▶ hidden states, asked positions ─┐
    text ──body──▶ …                               ├──▶ LM head ──▶ log-probabilities, favourites
    text ──body──▶ …                               ┘

A text's bits do not depend on those beside it: they are put together only where the head has been
found to give a row the same bits among few and among many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rnow.engines.base import ScoreRequest, Scores
from rnow.engines.local.batch import MIN_ROWS, forward_piece, pieces
from rnow.engines.local.head import Head
from rnow.engines.local.reply import Reply
from rnow.errors import EngineError
from rnow.networks.last_layer import only_rows
from rnow.records import IntArray

_ENOUGH_ROWS = 1024  # for one reading of the head


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A text that the body has read."""

    hidden: Tensor  # [rows, width]
    following: Tensor  # [rows] int64, the token after each
    is_wanted: Tensor  # [rows] bool; others stand beside those for the kernel's sake
    num_top: int


def read_text(model: PreTrainedModel, request: ScoreRequest) -> Text:
    """Read a text by the body; only asked positions go through all of its last layer."""
    token_ids, asked, cache = request.token_ids, request.asked, DynamicCache()
    hidden, kept, wanted = [], [], asked - 1  # the hidden state at i speaks of token i + 1
    for piece in pieces(len(token_ids) - 1):
        here = wanted[(wanted >= piece.start) & (wanted < piece.stop)]
        keep = _with_neighbours(here, max(request.start - 1, piece.start), piece.stop)
        in_piece = torch.from_numpy(keep - piece.start).to(model.device, torch.int64)
        with only_rows(model.base_model, in_piece):
            output = forward_piece(model.base_model, token_ids[piece], cache)
        hidden.append(output.last_hidden_state[0, in_piece])
        kept.append(keep)
        if piece.stop > wanted[-1]:
            break
    rows = np.concatenate(kept)
    following = np.array(token_ids)[rows + 1]
    return Text(
        hidden=torch.cat(hidden),
        following=torch.from_numpy(following).to(model.device, torch.int64),
        is_wanted=torch.from_numpy(np.isin(rows, wanted)).to(model.device),
        num_top=request.num_top,
    )


def score_texts(head: Head, texts: Sequence[Text]) -> list[Scores]:
    """Return what `Engine.score` promises of each text; all go through the head together.

    All ask for as many favourites: of equal ones, others are taken where more are asked.
    """
    (num_top,) = {text.num_top for text in texts}
    whole = head.score(
        torch.cat([text.hidden for text in texts]),
        torch.cat([text.following for text in texts]),
        num_top=num_top,
    )
    sizes = [len(text.hidden) for text in texts]
    scores = []
    for text, *of_text in zip(texts, *(torch.split(each, sizes) for each in whole), strict=True):
        logprobs, ids, best = (each[text.is_wanted].cpu().numpy() for each in of_text)
        scores.append(Scores(logprobs=logprobs, top_ids=ids.astype(np.int32), top_logprobs=best))
    return scores


def _with_neighbours(wanted: IntArray, first: int, stop: int) -> IntArray:
    """Return the positions for the LM head: `wanted`, and up to MIN_ROWS of their neighbours.

    So few rows go through another matrix kernel, and a token would have other bits when asked with
    few others than when asked with many.
    """
    if len(wanted) == 0 or len(wanted) >= MIN_ROWS:
        return wanted
    return np.union1d(wanted, np.arange(max(first, stop - MIN_ROWS), stop, dtype=np.int32))


class Scoring:
    """Texts that were read and wait for one head, and who waits for them."""

    def __init__(self) -> None:
        self._head: Head | None = None
        self._waiting: list[tuple[Reply[Scores], ScoreRequest, Text]] = []

    def add(self, head: Head, text: Text, request: ScoreRequest, reply: Reply[Scores]) -> None:
        """Let a text wait; those that it cannot be put together with are scored first."""
        if self._head is not head or any(
            text.num_top != waiting.num_top for _, _, waiting in self._waiting
        ):
            self.finish()
        self._head = head
        self._waiting.append((reply, request, text))
        num_rows = sum(len(waiting.hidden) for _, _, waiting in self._waiting)
        if num_rows >= _ENOUGH_ROWS or not head.is_invariant:
            self.finish()

    def finish(self) -> None:
        """Score what waits. Raises nothing: what fails is its callers' work."""
        head, self._head = self._head, None  # nor are its weights kept
        waiting = [each for each in self._waiting if not each[0].abandoned]
        self._waiting = []
        if not waiting or head is None:
            return
        try:
            scores = score_texts(head, [text for _, _, text in waiting])
        # Whatever torch raises belongs to the callers; the thread serves the others.
        except Exception as error:
            for reply, _, _ in waiting:
                reply.fail(error)
            return
        for (reply, request, _), found in zip(waiting, scores, strict=True):
            is_finite = np.isfinite(found.logprobs)
            if is_finite.all():
                reply.resolve(found)
            else:
                where = request.asked[np.argmin(is_finite)]
                reply.fail(EngineError(f"the log-probability of token {where} is not finite"))

    def fail(self, error: Exception) -> None:
        """Fail all that waits."""
        waiting, self._waiting, self._head = self._waiting, [], None
        for reply, _, _ in waiting:
            reply.fail(error)
