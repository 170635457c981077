"""What kind of text each sampled token is part of: thinking, tool call, arguments, answer, stop.

The tags are those of rnow.chat.toolcalls. A tag belongs to what it opens or closes; a turn that
closes a thinking which its template opened begins inside it.
"""

import re
from collections.abc import Sequence

from rnow.records import StopReason

KINDS = ("thinking", "tool call", "arguments", "answer", "stop")
_PARTS = re.compile(
    r"(?P<thinking><think>.*?(?:</think>|\Z))|(?P<call><tool_call>.*?(?:</tool_call>|\Z))",
    re.DOTALL,
)
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*(?P<value>.*?)(?=\}?\s*(?:</tool_call>|\Z))', re.DOTALL)


def kinds_of(texts: Sequence[str], stop_reason: StopReason) -> list[int]:
    """Return for each token of one turn an index into KINDS; a token has that of its start."""
    whole = "".join(texts)
    spans = list(_spans(whole))
    kinds, at = [], 0
    for text in texts:
        inside = [kind for start, end, kind in spans if start <= at < end]
        kinds.append(inside[-1] if inside else KINDS.index("answer"))
        at += len(text)
    if kinds and stop_reason is StopReason.STOP:
        kinds[-1] = KINDS.index("stop")
    return kinds


def _spans(text: str) -> list[tuple[int, int, int]]:
    """Return (start, end, kind); what stands later lies inside what stands before."""
    spans, begin = [], 0
    if "</think>" in text and "<think>" not in text.partition("</think>")[0]:
        begin = text.index("</think>") + len("</think>")
        spans.append((0, begin, 0))
    for part in _PARTS.finditer(text, begin):
        spans.append((part.start(), part.end(), 0 if part["thinking"] else 1))
        if part["call"] and (found := _ARGUMENTS.search(text, part.start(), part.end())):
            spans.append((*found.span("value"), 2))
    return spans
