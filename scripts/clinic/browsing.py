"""Rollouts of many rows at once over pages in memory: how good is a model, and what does it say?

Rows go in step: all speak their first turn, then all that called read their page, and so on.
rnow's own engine does this for real; here hundreds of questions take seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from clinic.learn import Encoder
from clinic.network import Cache, Shape, Weights, forward, logits
from clinic.text import NO_PAGE, FastTexts, bridge_text

from rnow.templates.clinic.make_site import QUESTIONS, Trial

MAX_TURNS = 4
MAX_NEW_TOKENS = 48
MAX_WINDOW = 1024


@dataclass(slots=True)
class Row:
    """One rollout in progress, and what became of it."""

    trial: Trial
    task: str
    ids: list[int]
    said: list[bool]
    logprobs: list[float]  # of what was said; 0 elsewhere
    num_calls: int = 0
    answer: str = ""
    unread: list[int] = field(default_factory=list)  # ids that are not in the cache yet
    done: bool = False

    @property
    def correct(self) -> bool:
        return self.answer == self.trial.answer(self.task)

    @property
    def well_formed(self) -> bool:
        """True where the rollout ended with a labelled line of the form that was asked for."""
        return self.done and self.answer.startswith(f"{self.task.upper()}: ")

    def append(self, ids: Sequence[int], *, said: bool, logprob: float = 0.0) -> None:
        self.ids += ids
        self.said += [said] * len(ids)
        self.logprobs += [logprob] * len(ids)


def pages_of(texts: FastTexts, trials: Sequence[Trial]) -> dict[str, str]:
    """Return what each page of the trials' site reads like, by URL."""
    pages = {trial.study_url: texts.study(trial) for trial in trials}
    return pages | {trial.drug_url: texts.drug(trial) for trial in trials}


@torch.no_grad()
def browse_all(
    model: tuple[Weights, Shape],
    encoder: Encoder,
    texts: FastTexts,
    asked: Sequence[tuple[Trial, str]],
    *,
    pages: Mapping[str, str],
    generator: torch.Generator | None = None,
) -> list[Row]:
    """Roll out every question: greedy without a generator, else sampled at temperature 1."""
    shape = model[1]
    rows = []
    for trial, task in asked:
        row = Row(trial, task, [], [], [])
        row.append(encoder.tokenizer.encode(texts.prompt(trial, task)).ids, said=False)
        row.unread = list(row.ids)
        rows.append(row)
    cache = Cache.empty(shape, rows=len(rows), room=MAX_WINDOW)
    for turn in range(MAX_TURNS):
        live = [row for row in rows if not row.done]
        if not live:
            break
        _speak(rows, live, model, cache, encoder, generator)
        for row in live:
            _answer_or_read(row, encoder, pages, last=turn == MAX_TURNS - 1)
    return rows


def _speak(
    rows: list[Row],
    live: list[Row],
    model: tuple[Weights, Shape],
    cache: Cache,
    encoder: Encoder,
    generator: torch.Generator | None,
) -> None:
    """Let all live rows say one turn."""
    weights, shape = model
    places = torch.tensor([rows.index(row) for row in live])
    part = Cache([k[places] for k in cache.keys], [v[places] for v in cache.values])
    speaking = [True] * len(live)
    for _ in range(MAX_NEW_TOKENS):
        unread = [row.unread or [encoder.pad] for row in live]
        longest = max(map(len, unread))
        ids = torch.tensor([ids + [encoder.pad] * (longest - len(ids)) for ids in unread])
        starts = torch.tensor([len(row.ids) - len(row.unread) for row in live])
        hidden = forward(weights, shape, ids, cache=part, starts=starts)
        ends = torch.tensor([len(ids) - 1 for ids in unread])
        scores = logits(weights, hidden[torch.arange(len(live)), ends]).log_softmax(-1)
        if generator is None:
            chosen = scores.argmax(-1)
        else:
            chosen = torch.multinomial(scores.exp(), 1, generator=generator)[:, 0]
        for number, row in enumerate(live):
            row.unread = []
            if speaking[number]:
                token = int(chosen[number])
                row.append([token], said=True, logprob=float(scores[number, token]))
                row.unread = [token]
                speaking[number] = token != encoder.stop and len(row.ids) < MAX_WINDOW - 200
        if not any(speaking):
            break
    for layer in range(shape.layers):
        cache.keys[layer][places] = part.keys[layer]
        cache.values[layer][places] = part.values[layer]


def _answer_or_read(row: Row, encoder: Encoder, pages: Mapping[str, str], *, last: bool) -> None:
    """End the row with what it said, or give it the page that it called for."""
    start = len(row.said) - next(
        (n for n, said in enumerate(reversed(row.said)) if not said), len(row.said)
    )
    spoken = row.ids[start:]
    stopped = spoken[-1] == encoder.stop
    text = encoder.tokenizer.decode(
        spoken[:-1] if stopped else spoken, skip_special_tokens=False
    ).strip()
    if not stopped or last or "<tool_call>" not in text:
        row.answer, row.done = text, True
        return
    row.num_calls += 1
    bridge = encoder.tokenizer.encode(bridge_text(_page(text, pages))).ids[1:]
    # The sampled end of turn is not in the cache yet.
    row.unread = [encoder.stop, *bridge]
    row.append(bridge, said=False)


def _page(text: str, pages: Mapping[str, str]) -> str:
    try:
        call: dict[str, Any] = json.loads(
            text.removeprefix("<tool_call>").removesuffix("</tool_call>")
        )
        return pages.get(call["arguments"]["url"], NO_PAGE)
    except (ValueError, KeyError, TypeError) as error:
        return f"<tool_error>Invalid JSON in tool call: {error}</tool_error>"


def held_out(trials: Sequence[Trial]) -> list[tuple[Trial, str]]:
    """Return every question about the trials."""
    return [(trial, task) for trial in trials for task in QUESTIONS]


def shares(rows: Sequence[Row]) -> dict[str, float]:
    """Return accuracy, share of well-formed answers, tokens said a rollout."""
    result = {"accuracy": sum(row.correct for row in rows) / len(rows)}
    for task in QUESTIONS:
        those = [row.correct for row in rows if row.task == task]
        result[task] = sum(those) / max(1, len(those))
    result["well_formed"] = sum(row.well_formed for row in rows) / len(rows)
    result["said_tokens"] = sum(sum(row.said) for row in rows) / len(rows)
    return result
