"""Which rollouts a report shows, and each as the page wants it.

So many of each reason as RULE says, at most MAX_BYTES of JSON for all runs together. Texts are
cut, and what a terminal or a browser would obey is written out.
"""

import heapq
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rnow.chat.calling import Calling
from rnow.records import EndReason, FloatArray, ToolOutcome, Trajectory, Turn
from rnow.reports.kinds import kinds_of
from rnow.reports.rollouts import Rollout

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_EACH = 40
NUM_HELD_OUT = 60
MAX_BYTES = 6_000_000
MAX_TEXT = 3_000  # characters of a prompt or a tool's answer
RULE = (
    f"the {NUM_EACH} with the worst gap, {NUM_EACH} each of those in which a tool failed, which "
    "ended without an answer, whose answer was wrong, of which the teacher's favourites are kept, "
    f"and of all, by a checksum of their names; and {NUM_HELD_OUT} held-out answers each of those "
    "that were wrong and of all, the same prompts in each evaluation"
)

# Controls, marks of direction, characters of no width, and halves of a pair.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)


@dataclass(slots=True)
class Sample:
    """The best of each reason so far; `add` keeps at most as many of each as RULE says."""

    _kept: dict[str, list[tuple[float, str, Rollout]]] = field(default_factory=dict)

    def add(self, rollout: Rollout) -> None:
        if rollout.held_out is not None:
            # By the prompt alone, so that one can be followed from evaluation to evaluation.
            key = _checksum(f"prompt {rollout.trajectory.id.prompt}")
            if rollout.right is False:
                self._keep("held-out, wrong", key, rollout, NUM_HELD_OUT)
            self._keep("held-out", key, rollout, NUM_HELD_OUT)
            return
        gap, key = rollout.mean_gap or 0.0, _checksum(rollout.name)
        self._keep("worst gap", gap, rollout)
        if failed(rollout):
            self._keep("failed tool", gap, rollout)
        if rollout.trajectory.end_reason is not EndReason.ANSWER:
            self._keep("no answer", gap, rollout)
        if rollout.right is False:
            self._keep("wrong answer", gap, rollout)
        if rollout.favourite_ids is not None:
            self._keep("favourites", key, rollout)
        self._keep("even", key, rollout)

    def chosen(self) -> list[tuple[Rollout, list[str]]]:
        """Return each with why it is there, in the order in which they get room."""
        reasons: dict[str, tuple[Rollout, list[str]]] = {}
        ranked = {reason: sorted(heap, reverse=True) for reason, heap in self._kept.items()}
        for rank in range(max(NUM_EACH, NUM_HELD_OUT)):
            for reason, heap in ranked.items():
                for _, name, rollout in heap[rank : rank + 1]:
                    reasons.setdefault(name, (rollout, []))[1].append(reason)
        return list(reasons.values())

    def _keep(self, reason: str, key: float, rollout: Rollout, most: int = NUM_EACH) -> None:
        heap = self._kept.setdefault(reason, [])
        # The name is in front of the record, which has no order.
        item = (key, rollout.name, rollout)
        if len(heap) < most:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)


def failed(rollout: Rollout) -> bool:
    return any(call.outcome is not ToolOutcome.OK for call in rollout.trajectory.tool_calls)


def _checksum(text: str) -> float:
    return float(zlib.crc32(text.encode()))


def fit(sample: Sample, show: Callable[[Rollout], Any], max_bytes: int) -> list[Any]:
    """Return the chosen ones as JSON values, as many as have room, in the order of their ids."""
    shown, room = [], max_bytes
    for rollout, why in sample.chosen():
        value = {**show(rollout), "why": why}
        room -= len(json.dumps(value))
        if room < 0:
            break
        shown.append(((rollout.held_out or -1, rollout.trajectory.id), value))
    return [value for _, value in sorted(shown, key=lambda pair: pair[0])]


def show(
    rollout: Rollout, tokenizer: "Tokenizer | None", calling: Calling | None
) -> dict[str, Any]:
    """Return one rollout as the page's script reads it; what is not known is None."""
    trajectory, gap = rollout.trajectory, rollout.mean_gap
    prompt = trajectory.token_ids[trajectory.turn_index == -1].tolist()
    parts: list[dict[str, Any]] = [{"text": cut("".join(texts_of(prompt, tokenizer)))}]
    at = 0
    for number, turn in enumerate(trajectory.turns):
        here = slice(at, at := at + turn.end - turn.start)
        parts.append({"turn": number, **_turn(rollout, turn, here, tokenizer, calling)})
        parts += [
            {
                "tool": visible(call.name or "unreadable call"),
                "arguments": cut(call.arguments),
                "outcome": call.outcome.value,
                "text": cut(call.text),
            }
            for call in turn.tool_calls
        ]
    return {
        "id": rollout.name,
        "entry": trajectory.id.prompt,
        "held_out": rollout.held_out,
        "end": trajectory.end_reason.value,
        "turns": len(trajectory.turns),
        "gap": None if gap is None else round(gap, 3),
        "repetition": round(rollout.repetition, 3),
        "failed": failed(rollout),
        "right": rollout.right,
        "extracted": None if rollout.extracted is None else cut(rollout.extracted),
        "expected": None if rollout.expected is None else cut(str(rollout.expected)),
        "parts": parts,
    }


def kinds(
    trajectory: Trajectory, tokenizer: "Tokenizer | None", calling: Calling | None
) -> list[int]:
    """Return the kind of text of each sampled token, turn by turn."""
    ids = trajectory.token_ids
    return [
        kind
        for turn in trajectory.turns
        for kind in kinds_of(
            texts_of(ids[turn.start : turn.end].tolist(), tokenizer), turn, calling
        )
    ]


def texts_of(ids: list[int], tokenizer: "Tokenizer | None") -> list[str]:
    """Return the text of each id, "" where it is but a part of a character's bytes."""
    if tokenizer is None:
        return [f"#{id} " for id in ids]
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, id) or "" for id in ids]


def visible(text: str) -> str:
    """Write out what would be obeyed, not shown: visible("a\\u202eb") == "a⟨U+202E⟩b"."""
    return _OBEYED.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def cut(text: str) -> str:
    left = len(text) - MAX_TEXT
    return visible(text[:MAX_TEXT]) + (f" … and {left} more characters" if left > 0 else "")


def _turn(
    rollout: Rollout,
    turn: Turn,
    here: slice,
    tokenizer: "Tokenizer | None",
    calling: Calling | None,
) -> dict[str, Any]:
    """Tokens of one turn, `here` among the sampled ones: t texts, k kinds, and log-probabilities:
    s the sampler's, p the student's own, q the teacher's; f the teacher's favourites."""
    texts = texts_of(rollout.trajectory.token_ids[turn.start : turn.end].tolist(), tokenizer)
    found = {
        "t": [visible(text) for text in texts],
        "k": kinds_of(texts, turn, calling),
        "s": _rounded(rollout.sampler[here]),
        "stop": turn.stop_reason.value,
    }
    if rollout.student is not None:
        found["p"] = _rounded(rollout.student[here])
    if rollout.teacher is not None:
        found["q"] = _rounded(rollout.teacher[here])
    if rollout.favourite_ids is not None and rollout.favourite_logprobs is not None:
        rows = zip(rollout.favourite_ids[here], rollout.favourite_logprobs[here], strict=True)
        found["f"] = [
            [
                [_one_text(int(id), tokenizer), round(float(logprob), 2)]
                for id, logprob in zip(ids, logprobs, strict=True)
            ]
            for ids, logprobs in rows
        ]
    return found


def _one_text(id: int, tokenizer: "Tokenizer | None") -> str:
    """Return the text of a token that stands alone; a part of a character is its id."""
    return visible("".join(texts_of([id], tokenizer))) or f"#{id}"


def _rounded(values: FloatArray) -> Any:
    return np.round(values.astype(float), 3).tolist()
