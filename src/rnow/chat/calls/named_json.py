"""A name in a header, then its arguments as JSON: DeepSeek, newer Mistral.

<｜tool▁call▁begin｜>function<｜tool▁sep｜>browse                    DeepSeek V3
```json
{"url": "…"}
```<｜tool▁call▁end｜>
<｜tool▁call▁begin｜>browse<｜tool▁sep｜>{"url": "…"}<｜tool▁call▁end｜>      DeepSeek V3.1
[TOOL_CALLS]browse[ARGS]{"url": "…"}                             Mistral
"""

import re
from dataclasses import dataclass

from rnow.chat.calls.form import (
    Opened,
    Read,
    Schemas,
    common_end,
    common_start,
    from_first_tag,
    loosely,
    malformed,
    marks_in,
    to_last_tag,
)
from rnow.chat.calls.json_value import arguments_of, decode, values_in
from rnow.chat.calls.probe import NAME, OTHER, WORDS, Samples
from rnow.tools.base import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedJson(Opened):
    between: str  # name and JSON
    closing: str  # "": the call ends where its JSON ends

    @property
    def marks(self) -> tuple[str, ...]:
        return marks_in(self.opening, self.between, self.closing)

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        start = at + len(self.opening)
        head = re.compile(rf"\s*([^\s<>{{}}\[\]\"']+)\s*{loosely(self.between)}\s*").match(
            text, start
        )
        if head is None:
            return self._malformed(text, start, "the name of the tool is missing")
        try:
            value, end = decode(text, head.end())
            arguments = arguments_of(value)
        except (ValueError, RecursionError) as error:
            return self._malformed(text, start, error)
        closing = re.compile(rf"\s*{loosely(self.closing)}").match(text, end)
        if closing is None:
            return self._malformed(text, start, f"the closing {self.closing!r} is missing")
        call = ToolCall(name=head[1], arguments=arguments, raw=text[start:end].strip())
        return Read(calls=(call,), end=closing.end())

    def _malformed(self, text: str, start: int, reason: object) -> Read:
        closed = text.find(self.closing.strip(), start) if self.closing else -1
        following = text.find(self.opening, start)
        ends = [end for end in (closed, following) if end >= 0]
        end = min(ends, default=len(text))
        call = malformed(text[start:end].strip(), reason)
        return Read(calls=(call,), end=end, is_whole=bool(ends))


def find_named_json(samples: Samples) -> NamedJson | None:
    """Derive the form from what a template writes; None if it writes another."""
    one, other = _place(samples.words, NAME), _place(samples.other or "", OTHER)
    if one is None or other is None:
        return None
    befores = [samples.words[: one[0]], (samples.other or "")[: other[0]]]
    closing = ""
    second = _place(samples.two or "", OTHER)
    if second is not None:
        two = samples.two or ""
        first = _place(two, NAME)
        befores.append(two[: second[0]])
        if first is not None:
            closing = to_last_tag(common_start([samples.words[one[2] :], two[first[2] :]]))
    opening = from_first_tag(common_end([samples.thinking.after(text) for text in befores]))
    if not opening:
        return None
    between = samples.words[one[0] + len(NAME) : one[1]]
    return NamedJson(opening=opening, between=between.strip(), closing=closing)


def _place(text: str, name: str) -> tuple[int, int, int] | None:
    """Return where the name, the JSON of its arguments and the end of that stand."""
    for value, start, end in values_in(text):
        named = text.rfind(name, 0, start)
        if value == WORDS and named >= 0:
            return named, start, end
    return None
