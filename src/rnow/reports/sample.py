"""Which trajectories a report shows, and each as the page wants it.

NUM_EACH of each reason (RULE says them), at most MAX_BYTES of JSON for all runs together. Texts are
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
from rnow.records import EndReason, ScoredTrajectory, ToolOutcome, Turn
from rnow.reports.kinds import kinds_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_EACH = 40
MAX_BYTES = 6_000_000
MAX_TEXT = 3_000  # characters of a prompt or a tool's answer
RULE = (
    f"the {NUM_EACH} with the worst gap, {NUM_EACH} of those in which a tool failed, {NUM_EACH} of "
    f"those that ended without an answer, and {NUM_EACH} drawn evenly from all; the first three "
    "kinds by their mean gap, the last by a checksum of their names"
)

# Controls, marks of direction, characters of no width, and halves of a pair.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)


@dataclass(slots=True)
class Sample:
    """The best of each reason so far; `add` keeps at most NUM_EACH of each."""

    _kept: dict[str, list[tuple[float, str, ScoredTrajectory]]] = field(default_factory=dict)

    def add(self, scored: ScoredTrajectory) -> None:
        trajectory, gap = scored.trajectory, mean_gap(scored)
        name = str(trajectory.id)
        self._keep("worst gap", gap, scored)
        if any(call.outcome is not ToolOutcome.OK for call in trajectory.tool_calls):
            self._keep("failed tool", gap, scored)
        if trajectory.end_reason is not EndReason.ANSWER:
            self._keep("no answer", gap, scored)
        self._keep("even", float(zlib.crc32(name.encode())), scored)

    def chosen(self) -> list[tuple[ScoredTrajectory, list[str]]]:
        """Return each with why it is there, in the order in which they get room."""
        reasons: dict[str, tuple[ScoredTrajectory, list[str]]] = {}
        for rank in range(NUM_EACH):
            for reason, heap in self._kept.items():
                for _, name, scored in sorted(heap, reverse=True)[rank : rank + 1]:
                    reasons.setdefault(name, (scored, []))[1].append(reason)
        return list(reasons.values())

    def _keep(self, reason: str, key: float, scored: ScoredTrajectory) -> None:
        heap = self._kept.setdefault(reason, [])
        # The name is in front of the record, which has no order.
        item = (key, str(scored.trajectory.id), scored)
        if len(heap) < NUM_EACH:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)


def mean_gap(scored: ScoredTrajectory) -> float:
    mask = scored.trajectory.action_mask
    gaps = (scored.trajectory.sampler_logprobs - scored.teacher_logprobs)[mask]
    return float(gaps.mean()) if gaps.size else 0.0


def fit(sample: Sample, show: Callable[[ScoredTrajectory], Any], max_bytes: int) -> list[Any]:
    """Return the chosen ones as JSON values, as many as have room, in the order of their ids."""
    shown, room = [], max_bytes
    for scored, why in sample.chosen():
        value = {**show(scored), "why": why}
        room -= len(json.dumps(value))
        if room < 0:
            break
        shown.append((scored.trajectory.id, value))
    return [value for _, value in sorted(shown, key=lambda pair: pair[0])]


def show(
    scored: ScoredTrajectory, tokenizer: "Tokenizer | None", calling: Calling | None
) -> dict[str, Any]:
    """Return one trajectory as the page's script reads it."""
    trajectory = scored.trajectory
    prompt = trajectory.token_ids[trajectory.turn_index == -1].tolist()
    parts: list[dict[str, Any]] = [{"text": cut("".join(texts_of(prompt, tokenizer)))}]
    for number, turn in enumerate(trajectory.turns):
        parts.append({"turn": number, **_turn(scored, turn, tokenizer, calling)})
        parts += [
            {
                "tool": visible(call.name or "unreadable call"),
                "arguments": cut(call.arguments),
                "outcome": call.outcome.value,
                "text": cut(call.text),
            }
            for call in turn.tool_calls
        ]
    failed = any(call.outcome is not ToolOutcome.OK for call in trajectory.tool_calls)
    return {
        "id": str(trajectory.id),
        "entry": trajectory.id.prompt,
        "end": trajectory.end_reason.value,
        "turns": len(trajectory.turns),
        "gap": round(mean_gap(scored), 3),
        "failed": failed,
        "parts": parts,
    }


def kinds(
    scored: ScoredTrajectory, tokenizer: "Tokenizer | None", calling: Calling | None
) -> list[int]:
    """Return the kind of text of each sampled token, turn by turn."""
    ids = scored.trajectory.token_ids
    return [
        kind
        for turn in scored.trajectory.turns
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
    scored: ScoredTrajectory, turn: Turn, tokenizer: "Tokenizer | None", calling: Calling | None
) -> dict[str, Any]:
    """Tokens of one turn: t texts, s the sampler's, q the teacher's log-probability, k kinds."""
    here = slice(turn.start, turn.end)
    texts = texts_of(scored.trajectory.token_ids[here].tolist(), tokenizer)
    logprobs = (scored.trajectory.sampler_logprobs[here], scored.teacher_logprobs[here])
    sampler, teacher = (np.round(one.astype(float), 3).tolist() for one in logprobs)
    return {
        "t": [visible(text) for text in texts],
        "s": sampler,
        "q": teacher,
        "k": kinds_of(texts, turn, calling),
        "stop": turn.stop_reason.value,
    }
