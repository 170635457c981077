r"""Calls as Python writes them, in a list behind a marker: LFM2, OLMo 3.

    <|tool_call_start|>[browse(url='…', page=2), browse(url='…')]<|tool_call_end|>

Some templates put strings between quotes without escaping what is in them: such a value ends where
what follows it can only be the next argument, the next call, or the end.
"""

import ast
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rnow.chat.calls.form import (
    Opened,
    Read,
    Schemas,
    common_end,
    from_first_tag,
    malformed,
    marks_in,
    tags_in,
)
from rnow.chat.calls.probe import KEYS, MIXED, NAME, OTHER, VALUES, Samples
from rnow.tools.base import ToolCall

_HEAD = re.compile(r"\s*([^\s()\[\],]+)\(\s*")
_UNREAD = object()
_MAX_ENDS = 64  # places at which a value may end that are tried: a student can write any number


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCall(Opened):
    closing: str
    raw_strings: bool  # what stands between the quotes is the text as it is

    @property
    def marks(self) -> tuple[str, ...]:
        return marks_in(self.opening, self.closing)

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        """Read all calls of a list."""
        start = at + len(self.opening)
        start += len(text[start:]) - len(text[start:].lstrip().removeprefix("["))
        calls: list[ToolCall] = []
        end = start
        while True:
            one = read_call(text, end, schemas, raw=self.raw_strings)
            calls += one.calls
            if one.calls[-1].error:
                return self._read_malformed(text, end, calls)
            end = one.end
            rest = re.compile(r"\s*(?:,\s*|(?=[^\s\],<]))").match(text, end)
            if rest is None:
                break
            end = rest.end()
        closing = re.compile(r"\s*\]?\s*" + re.escape(self.closing)).match(text, end)
        if closing is None:
            calls[-1] = malformed(
                calls[-1].raw, f"the closing {self.closing} is missing", is_json=False
            )
            return Read(calls=tuple(calls), end=len(text), is_whole=False)
        return Read(calls=tuple(calls), end=closing.end())

    def _read_malformed(self, text: str, start: int, calls: list[ToolCall]) -> Read:
        closed = text.find(self.closing, start)
        end = len(text) if closed < 0 else closed
        calls[-1] = malformed(
            text[start:end].strip(), "expected name(argument=value, …)", is_json=False
        )
        return Read(calls=tuple(calls), end=end, is_whole=closed >= 0)


def read_call(text: str, at: int, schemas: Schemas, *, raw: bool) -> Read:
    """Read one `name(key=value, …)`; `raw`: strings are between quotes as they are."""
    head = _HEAD.match(text, at)
    if head is None:
        return _broken(text, at)
    name = head[1].removesuffix(".call")  # <|python_tag|>brave_search.call(query="…")
    known = schemas.get(name, {}).get("properties", {}).keys()
    arguments: dict[str, Any] = {}
    end = head.end()
    while not text.startswith(")", end):
        key = re.compile(r"\s*([^\s=()'\"]+)\s*=\s*").match(text, end)
        if key is None:
            return _broken(text, at)
        value, end = _value(text, key.end(), known, schemas, raw=raw)
        if value is _UNREAD:
            return _broken(text, at)
        arguments[key[1]] = value
        end += len(text[end:]) - len(text[end:].lstrip().removeprefix(",").lstrip())
    call = ToolCall(name=name, arguments=arguments, raw=text[at : end + 1].strip())
    return Read(calls=(call,), end=end + 1)


def _broken(text: str, at: int) -> Read:
    call = malformed(text[at:].strip(), "expected name(argument=value, …)", is_json=False)
    return Read(calls=(call,), end=len(text), is_whole=False)


def _value(
    text: str, at: int, keys: Collection[str], schemas: Schemas, *, raw: bool
) -> tuple[Any, int]:
    """Return a value and where it ends: the first place where it is one and something follows."""
    names = "|".join(map(re.escape, schemas)) or r"[\w.]+"
    key = "|".join(map(re.escape, keys)) or r"\w+"
    follows = re.compile(rf"\s*(?:,\s*(?:{key})\s*=|\)\s*(?:\]|\Z|<|[,\n]\s*(?:{names})\())")
    for stop in islice(follows.finditer(text, at), _MAX_ENDS):
        value = _literal(text[at : stop.start()].strip(), raw=raw)
        if value is not _UNREAD:
            return value, stop.start()
    return _UNREAD, at


def _literal(text: str, *, raw: bool) -> Any:
    if raw and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return _UNREAD


def find_python_call(samples: Samples) -> PythonCall | None:
    """Derive the form from what a template writes; None if it writes another."""
    written = re.search(
        rf"{NAME}\({KEYS[0]}=(['\"]){VALUES[0]}\1,\s*{KEYS[1]}=(['\"]){VALUES[1]}\2\)",
        samples.words,
    )
    if written is None or samples.other is None:
        return None
    befores = [samples.words[: written.start()], samples.other[: samples.other.find(OTHER + "(")]]
    opening = from_first_tag(common_end([samples.thinking.after(text) for text in befores]))
    closing = next(iter(tags_in(samples.words[written.end() :])), "")
    if not opening.removesuffix("[") or not closing:
        return None
    raw = str(MIXED["text"]) in (samples.mixed or "")
    return PythonCall(opening=opening.removesuffix("["), closing=closing, raw_strings=raw)
