"""What kind of text each sampled token is part of: thinking, tool call, arguments, answer, stop.

Calls are found as the student's own template writes them (rnow.chat.calling), so what stands for a
call in one family is no call in another. A tag belongs to what it opens or closes; arguments are
what stands behind the tool's name; a turn that closes a thinking which its template opened begins
inside it.
"""

from collections.abc import Iterator, Sequence

from rnow.chat.calling import Calling
from rnow.chat.calls.form import THINK_TAGS, Schemas
from rnow.records import StopReason, Turn

KINDS = ("thinking", "tool call", "arguments", "answer", "stop")

Span = tuple[int, int, int]  # start, end, kind


def kinds_of(texts: Sequence[str], turn: Turn, calling: Calling | None) -> list[int]:
    """Return for each token of one turn an index into KINDS; a token has that of its start."""
    whole = "".join(texts)
    schemas: Schemas = {call.name: {"properties": {}} for call in turn.tool_calls if call.name}
    spans = list(_spans(whole, calling, schemas))
    kinds, at = [], 0
    for text in texts:
        inside = [kind for start, end, kind in spans if start <= at < end]
        kinds.append(inside[-1] if inside else KINDS.index("answer"))
        at += len(text)
    if kinds and turn.stop_reason is StopReason.STOP:
        kinds[-1] = KINDS.index("stop")
    return kinds


def _spans(text: str, calling: Calling | None, schemas: Schemas) -> Iterator[Span]:
    """Yield spans; what comes later lies inside what came before, or behind it."""
    thinking = THINK_TAGS if calling is None else calling.thinking
    at = 0
    closed = text.find(thinking.close)
    if closed >= 0 and thinking.open not in text[:closed]:
        at = closed + len(thinking.close)
        yield 0, at, 0
    while True:
        call = None if calling is None else calling.form.find(text, at, schemas)
        thought = text.find(thinking.open, at)
        if thought >= 0 and (call is None or thought < call):
            closed = text.find(thinking.close, thought)
            at = len(text) if closed < 0 else closed + len(thinking.close)
            yield thought, at, 0
        elif call is not None and calling is not None:
            found = calling.form.read(text, call, schemas)
            at = max(found.end if found.is_whole else len(text), call + 1)
            yield call, at, 1
            for name in {one.name for one in found.calls if one.name} or schemas.keys():
                yield from _arguments(text, call, at, name, calling.form.marks)
        else:
            return


def _arguments(text: str, start: int, end: int, name: str, marks: Sequence[str]) -> Iterator[Span]:
    """Yield what stands between a call's name and the marks at its end."""
    named = text.find(name, start, end)
    inside = text[named + len(name) : end].rstrip() if named >= 0 else ""
    while mark := next((mark for mark in marks if mark and inside.endswith(mark)), None):
        inside = inside.removesuffix(mark).rstrip()
    if inside:
        yield named + len(name), named + len(name) + len(inside), 2
