r"""Tags around the name and each argument: Qwen3.5, Qwen3-Coder, Nemotron 3, GLM 4.5, Muse.

    opening        <tool_call>\n<function=          <tool_call>          …<atem:invoke name="
    name           browse
    name_end       >\n                              \n                   ">\n
    key_open       <parameter=                      <arg_key>            <atem:parameter name="
    key            url
    key_end        >\n                              </arg_key>\n<arg_value>   ">
    value          http://clinic.test/
    value_end      \n</parameter>\n                 </arg_value>\n       </atem:parameter>\n
    closing        </function>\n</tool_call>        </tool_call>         </atem:invoke>…

All literals are found by taking known words out of what the template writes. Nothing is escaped in
such a form: a value ends at the first `value_end` that another argument or the closing follows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rnow.chat.calls.form import (
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
from rnow.chat.calls.probe import KEYS, NAME, OTHER, VALUES, Samples
from rnow.chat.calls.typed import typed
from rnow.tools.base import ToolCall

_NAME_END = re.compile(r"[\s>\"']*")


@dataclass(frozen=True, kw_only=True)
class Tagged:
    opening: str
    name_end: str
    key_open: str
    key_end: str
    value_end: str
    closing: str

    @property
    def marks(self) -> tuple[str, ...]:
        texts = (self.opening, self.key_open, self.key_end, self.value_end, self.closing)
        return marks_in(*texts)

    def find(self, text: str, at: int, schemas: Schemas) -> int | None:
        found = self._opening.search(text, at)
        return None if found is None else found.start()

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        opening = self._opening.match(text, at)
        assert opening is not None
        name = self._name.match(text, opening.end())
        if name is None:
            return self._malformed(text, opening.end(), "the name of the tool is missing")
        properties = schemas.get(name[1], {}).get("properties", {})
        arguments: dict[str, Any] = {}
        end = name.end()
        while (key := self._key.match(text, end)) is not None:
            value_end = self._value_end.search(text, key.end())
            if value_end is None:
                return self._malformed(
                    text, opening.end(), f"the end of argument {key[1]!r} is missing"
                )
            value = text[key.end() : value_end.start()].removeprefix(self._space_before)
            arguments[key[1]] = typed(value, properties.get(key[1]))
            end = value_end.end()
        closing = self._closing.match(text, end)
        if closing is None:
            reason = (
                f"expected {self.key_open.strip()} or {self.closing!r} behind {text[:end][-40:]!r}"
            )
            return self._malformed(text, opening.end(), reason)
        raw = text[opening.end() : closing.start()].strip()
        call = ToolCall(name=name[1], arguments=arguments, raw=raw)
        return Read(calls=(call,), end=closing.end())

    def _malformed(self, text: str, start: int, reason: str) -> Read:
        closed = text.find("<" + self.closing.rpartition("<")[2], start)
        end = len(text) if closed < 0 else closed
        call = malformed(text[start:end].strip(), reason, is_json=False)
        return Read(calls=(call,), end=end, is_whole=closed >= 0)

    # The template's own whitespace around a value, and no more of it, is left out.
    @cached_property
    def _space_before(self) -> str:
        return self.key_end[len(self.key_end.rstrip()) :]

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        return re.compile(loosely(self.opening))

    @cached_property
    def _name(self) -> re.Pattern[str]:
        return re.compile(rf"\s*([^\s<>\"']+)\s*{loosely(self.name_end.strip())}\s*")

    @cached_property
    def _key(self) -> re.Pattern[str]:
        # Whitespace behind the last tag belongs to the value.
        end = loosely(self.key_end.rstrip())
        return re.compile(rf"\s*{loosely(self.key_open)}\s*([^\s<>\"]+)\s*{end}")

    @cached_property
    def _value_end(self) -> re.Pattern[str]:
        leading = self.value_end[: len(self.value_end) - len(self.value_end.lstrip())]
        end = loosely(self.value_end.strip())
        follows = rf"\s*(?:{loosely(self.key_open)}|{loosely(self.closing)})"
        exact = re.escape(leading)
        return re.compile(rf"(?:{exact})?{end}(?={follows})")

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{loosely(self.closing)}")


def find_tagged(samples: Samples) -> Tagged | None:
    """Derive the form from what a template writes; None if it writes another."""
    words, other, empty, two = samples.words, samples.other, samples.empty, samples.two
    if other is None or empty is None or two is None or NAME not in empty:
        return None
    name_at = _place_of_name(words, NAME)
    pieces = _between(words[name_at:], (NAME, KEYS[0], VALUES[0], KEYS[1], VALUES[1]))
    if pieces is None:
        return None
    to_key, key_end, to_next_key, second_key_end, tail = pieces
    to_closing = empty[empty.rfind(NAME) + len(NAME) :]
    name_end = _NAME_END.match(common_start([to_key, to_closing]))[0]  # type: ignore[index]
    key_open = to_key[len(name_end) :]
    value_end = to_next_key.removesuffix(key_open)
    if key_end != second_key_end or not key_open.strip() or not tail.startswith(value_end):
        return None
    befores = [words[:name_at], other[: _place_of_name(other, OTHER)]]
    befores.append(two[: _place_of_name(two, OTHER)])
    next_tail = two[two.find(VALUES[1]) + len(VALUES[1]) :]
    closing = to_last_tag(common_start([tail, next_tail]).removeprefix(value_end))
    opening = from_first_tag(common_end([samples.thinking.after(text) for text in befores]))
    if not opening or not closing or not value_end.strip():
        return None
    return Tagged(
        opening=opening,
        name_end=name_end,
        key_open=key_open,
        key_end=key_end,
        value_end=value_end,
        closing=closing,
    )


def _place_of_name(text: str, name: str) -> int:
    """Return where the name stands that the first argument follows."""
    return text.rfind(name, 0, text.find(KEYS[0], text.find(name)))


def _between(text: str, words: Sequence[str]) -> list[str] | None:
    """Return what stands behind each word, up to the next one."""
    pieces = re.split("|".join(words), text)
    found = re.findall("|".join(words), text)
    return pieces[1:] if found == list(words) else None
