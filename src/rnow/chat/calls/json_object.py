"""Name and arguments in one JSON object, or in a list of them, behind a marker.

    <tool_call>                                                  Hermes, Qwen2.5, Qwen3, SmolLM3
    {"name": "browse", "arguments": {"url": "…"}}
    </tool_call>
    [TOOL_CALLS] [{"name": "browse", "arguments": {"url": "…"}}] Mistral; Granite, Phi-4-mini

The JSON says where it ends, so that a marker inside a string stays text.
"""

import json
from dataclasses import dataclass
from typing import Any

from rnow.chat.calls.form import (
    Opened,
    Read,
    Schemas,
    common_end,
    common_start,
    from_first_tag,
    malformed,
    marks_in,
    to_last_tag,
)
from rnow.chat.calls.json_value import call_of, decode, values_in
from rnow.chat.calls.probe import NAME, OTHER, WORDS, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonObject(Opened):
    closing: str  # "": the call ends where its JSON ends
    name_key: str
    arguments_key: str
    is_list: bool

    @property
    def marks(self) -> tuple[str, ...]:
        return marks_in(self.opening, self.closing)

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        start = at + len(self.opening)
        try:
            value, end = decode(text, start)
        except ValueError as error:
            return self._read_malformed(text, start, error)
        after = len(text) - len(text[end:].lstrip())
        if not text.startswith(self.closing, after):
            return self._read_malformed(text, start)
        raw = text[start:end].strip()
        values = value if isinstance(value, list) and self.is_list else [value]
        calls = [
            call_of(value, raw, name_key=self.name_key, arguments_key=self.arguments_key)
            for value in values
        ]
        return Read(calls=tuple(calls), end=after + len(self.closing))

    def _read_malformed(self, text: str, start: int, error: ValueError | None = None) -> Read:
        end = text.find(self.closing, start) if self.closing else -1
        if end < 0:
            raw = text[start:].strip()
            reason = f"the closing {self.closing} is missing" if self.closing else error
            return Read(calls=(malformed(raw, reason),), end=len(text), is_whole=False)
        raw = text[start:end].strip()
        try:
            json.loads(raw)
        except (ValueError, RecursionError) as found:
            error = ValueError(str(found))
        return Read(calls=(malformed(raw, error),), end=end + len(self.closing))


def find_json_object(samples: Samples) -> JsonObject | None:
    """Derive the form from what a template writes; None if it writes another."""
    found = object_in(samples.words, NAME)
    if found is None:
        return None
    one, two = (_objects(text) for text in (samples.words, samples.two or ""))
    places = [(samples.words, one[0])] + [(samples.two or "", place) for place in two]
    opening = from_first_tag(
        common_end([samples.thinking.after(text[:start]) for text, (start, _) in places])
    )
    if not opening:
        return None
    closing = ""
    if len(two) > 1:
        ends = [samples.words[one[0][1] :], (samples.two or "")[two[0][1] :]]
        closing = to_last_tag(common_start(ends))
    return JsonObject(opening=opening, closing=closing, **found)


def object_in(text: str, name: str) -> dict[str, Any] | None:
    """Return the keys of the object that names this tool, and whether it stands in a list."""
    for value, _, _ in values_in(text):
        objects = value if isinstance(value, list) else [value]
        for one in objects:
            if not isinstance(one, dict):
                continue
            names = [key for key, inner in one.items() if inner == name]
            arguments = [key for key, inner in one.items() if inner == WORDS]
            if names and arguments:
                return {
                    "name_key": names[0],
                    "arguments_key": arguments[0],
                    "is_list": isinstance(value, list),
                }
    return None


def _objects(text: str) -> list[tuple[int, int]]:
    """Return where the JSON values that hold known calls stand."""
    return [
        (start, end)
        for _, start, end in values_in(text)
        if any(name in text[start:end] for name in (NAME, OTHER))
    ]
