r"""A JSON object that is the whole turn, without a marker: Llama 3.1, 3.2, 3.3.

    {"name": "browse", "parameters": {"url": "…"}}
    <|python_tag|>{"name": "browse", "parameters": {"url": "…"}}
    <|python_tag|>browse.call(url="…")

Without a marker only the beginning of a turn can be a call, and further ones behind it. An answer
in JSON is none unless it names a tool, or has both keys.
"""

import re
from dataclasses import dataclass

from rnow.chat.calls.form import Read, Schemas, malformed
from rnow.chat.calls.json_object import object_in
from rnow.chat.calls.json_value import call_of, decode, values_in
from rnow.chat.calls.probe import NAME, Samples
from rnow.chat.calls.python_call import read_call

_TAG = "<|python_tag|>"
_START = re.compile(r"[\s;]*(?=\{)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BareJson:
    name_key: str
    arguments_key: str

    @property
    def marks(self) -> tuple[str, ...]:
        return (_TAG,)

    def find(self, text: str, at: int, schemas: Schemas) -> int | None:
        # `at` is the beginning of the turn, or the end of thinking or of a call.
        match = _START.match(text, at)
        if match and self._names_a_tool(text[match.end() :], schemas):
            return match.end()
        tag = text.find(_TAG, at)
        return None if tag < 0 else tag

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        tagged = text.startswith(_TAG, at)
        start = at + len(_TAG) if tagged else at
        if tagged and not text[start:].lstrip().startswith("{"):
            return read_call(text, start, schemas, raw=False)
        try:
            value, end = decode(text, start)
        except ValueError as error:
            call = malformed(text[start:].strip(), error)
            return Read(calls=(call,), end=len(text), is_whole=False)
        raw = text[start:end].strip()
        call = call_of(value, raw, name_key=self.name_key, arguments_key=self.arguments_key)
        return Read(calls=(call,), end=end)

    def _names_a_tool(self, text: str, schemas: Schemas) -> bool:
        named = re.match(rf'\{{\s*"{re.escape(self.name_key)}"\s*:\s*"([^"]*)"', text)
        if named is None:
            return False
        try:
            value, _ = decode(text)
        except ValueError:
            return named[1] in schemas or f'"{self.arguments_key}"' in text
        return named[1] in schemas or self.arguments_key in value


def find_bare_json(samples: Samples) -> BareJson | None:
    """Derive the form from what a template writes; None if it writes another."""
    keys = object_in(samples.words, NAME)
    if keys is None or keys["is_list"]:
        return None
    start = next(start for _, start, _ in values_in(samples.words))
    if samples.thinking.after(samples.words[:start]).strip():
        return None
    return BareJson(name_key=keys["name_key"], arguments_key=keys["arguments_key"])
