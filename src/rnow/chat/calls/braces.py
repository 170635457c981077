r"""A call with arguments in braces, keys bare, strings between tokens: Gemma 4, FunctionGemma.

    <|tool_call>call:browse{page:2,url:<|"|>http://clinic.test/<|"|>}<tool_call|>

A string ends at the next delimiter, and nothing in it is escaped. Some of these templates write
Python's None, True and False inside lists.
"""

import re
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
from rnow.chat.calls.probe import KEYS, NAME, OTHER, VALUES, Samples
from rnow.tools.base import ToolCall

_WORDS = {
    **{"true": True, "false": False, "null": None},
    **{"True": True, "False": False, "None": None},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Braces(Opened):
    quote: str
    closing: str

    @property
    def marks(self) -> tuple[str, ...]:
        return marks_in(self.opening, self.closing, self.quote)

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        start = at + len(self.opening)
        closed = text.find(self.closing, start)
        try:
            head = re.compile(r"\s*([^\s<>{}\[\]:]+)\s*(?={)").match(text, start)
            if head is None:
                raise ValueError("the name of the tool is missing")
            arguments, end = _Values(text, self.quote).read(head.end())
            closing = re.compile(r"\s*" + re.escape(self.closing)).match(text, end)
            if closing is None:
                raise ValueError(f"the closing {self.closing} is missing")
        except (ValueError, RecursionError) as error:
            end = len(text) if closed < 0 else closed
            call = malformed(text[start:end].strip(), error, is_json=False)
            return Read(calls=(call,), end=end, is_whole=closed >= 0)
        call = ToolCall(name=head[1], arguments=arguments, raw=text[start:end].strip())
        return Read(calls=(call,), end=closing.end())


@dataclass(frozen=True, slots=True)
class _Values:
    """Reads values of the notation from a text; each method returns where it ended."""

    text: str
    quote: str

    def read(self, at: int) -> tuple[Any, int]:
        at = self._skip(at)
        if self.text.startswith(self.quote, at):
            return self._string(at)
        if self.text.startswith("{", at):
            return self._object(at)
        if self.text.startswith("[", at):
            return self._list(at)
        word = re.compile(r"[^\s,\]}<]*").match(self.text, at)
        assert word is not None
        return self._word(word[0]), word.end()

    def _string(self, at: int) -> tuple[str, int]:
        start = at + len(self.quote)
        end = self.text.find(self.quote, start)
        if end < 0:
            raise ValueError(f"a string is not closed: {self.text[start:][:40]!r}")
        return self.text[start:end], end + len(self.quote)

    def _object(self, at: int) -> tuple[dict[str, Any], int]:
        pairs: dict[str, Any] = {}
        at = self._skip(at + 1)
        while not self.text.startswith("}", at):
            if self.text.startswith(self.quote, at):
                key, at = self._string(at)
            else:
                bare = re.compile(r"[^\s,:{}\[\]]+").match(self.text, at)
                if bare is None:
                    raise ValueError(f"a key is missing before {self.text[at:][:40]!r}")
                key, at = bare[0], bare.end()
            at = self._skip(at)
            if not self.text.startswith(":", at):
                raise ValueError(f"no colon behind {key!r}")
            pairs[key], at = self.read(at + 1)
            at = self._comma_or(at, "}")
        return pairs, at + 1

    def _list(self, at: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        at = self._skip(at + 1)
        while not self.text.startswith("]", at):
            item, at = self.read(at)
            items.append(item)
            at = self._comma_or(at, "]")
        return items, at + 1

    def _word(self, word: str) -> Any:
        if word in _WORDS:
            return _WORDS[word]
        for number in (int, float):
            try:
                return number(word)
            except ValueError:
                continue
        raise ValueError(f"{word!r} is neither a number nor a string between {self.quote}")

    def _comma_or(self, at: int, closing: str) -> int:
        at = self._skip(at)
        if self.text.startswith(",", at):
            return self._skip(at + 1)
        if not self.text.startswith(closing, at):
            raise ValueError(f"expected a comma or {closing} before {self.text[at:][:40]!r}")
        return at

    def _skip(self, at: int) -> int:
        space = re.compile(r"\s*").match(self.text, at)
        assert space is not None
        return space.end()


def find_braces(samples: Samples) -> Braces | None:
    """Derive the form from what a template writes; None if it writes another."""
    quoted = rf"(?P<quote>\S+?){VALUES[0]}(?P=quote)"
    written = re.search(
        rf"{NAME}{{{KEYS[0]}:{quoted},{KEYS[1]}:(?P=quote){VALUES[1]}(?P=quote)}}", samples.words
    )
    if written is None or samples.other is None or samples.two is None:
        return None
    befores = [samples.words[: written.start()]]
    befores += [text[: text.find(OTHER + "{")] for text in (samples.other, samples.two)]
    opening = from_first_tag(common_end([samples.thinking.after(text) for text in befores]))
    second = samples.two[samples.two.find(written[0]) + len(written[0]) :]
    closing = to_last_tag(common_start([samples.words[written.end() :], second]))
    if not opening or not closing:
        return None
    return Braces(opening=opening, quote=written["quote"], closing=closing)
