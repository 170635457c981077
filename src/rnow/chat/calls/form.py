r"""What one way of writing tool calls has to do, and the reading that all of them share.

    <think>Should I <tool_call>…? Not yet.</think>           thinking: nothing in it is a call
    <tool_call>                                              where a form's `find` says
    {"name": "browse", "arguments": {"url": "…"}}            what its `read` takes
    </tool_call>

What cannot be read is still a call: the model tried, and is told what was wrong with it. Which tool
it names and whether the arguments fit is the business of whoever runs the call.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rnow.tools.base import ToolCall

Schemas = Mapping[str, Mapping[str, Any]]  # name of a tool -> JSON schema of its arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """The tags around what a model thinks, e.g. Thinking(open="<think>", close="</think>")."""

    open: str
    close: str

    def is_open_at_end_of(self, text: str) -> bool:
        """Say whether a prompt that ends so leaves the model inside its thinking."""
        return text.rfind(self.open) > text.rfind(self.close)

    def after(self, text: str) -> str:
        """Return what stands behind the last thinking of a text."""
        return text.rpartition(self.close)[2]

    def reopened(self, text: str) -> str:
        """Return a turn that begins inside its thinking with what its prompt opened."""
        return self.open + text if text.lstrip().startswith(self.close) else text


THINK_TAGS = Thinking(open="<think>", close="</think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What was read from one opening: the calls, where they end, whether the model got to it."""

    calls: tuple[ToolCall, ...]
    end: int
    is_whole: bool = True  # False: the text ends before the call does


class Form(Protocol):
    """One way of writing calls, with the markers that one template uses."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Pieces of text that mean a call to the model; no tool's text may hold them."""
        ...

    def find(self, text: str, at: int, schemas: Schemas) -> int | None:
        """Return where the next call begins, from `at` on."""
        ...

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        """Read what begins at `at`, a place that `find` returned."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What the forms share whose every call begins with one literal."""

    opening: str

    def find(self, text: str, at: int, schemas: Schemas) -> int | None:
        found = text.find(self.opening, at)
        return None if found < 0 else found


def read_calls(
    form: Form, text: str, *, thinking: Thinking, schemas: Schemas, stopped: bool
) -> tuple[ToolCall, ...]:
    """Return the calls of a turn in their order.

    A call without its end is malformed where the model stopped by itself, and no call at all where
    the generation was cut (`stopped` False): nobody knows what it was going to be.
    """
    calls: list[ToolCall] = []
    at = 0
    while True:
        start = form.find(text, at, schemas)
        thought = text.find(thinking.open, at)
        if start is None or 0 <= thought < start:
            closed = text.find(thinking.close, thought) if thought >= 0 else -1
            if closed < 0:
                break
            at = closed + len(thinking.close)
            continue
        found = form.read(text, start, schemas)
        if found.is_whole or stopped:
            calls += found.calls
        at = max(found.end, start + 1)
    return tuple(calls)


def malformed(raw: str, reason: object, *, is_json: bool = True) -> ToolCall:
    """Return the call that could not be read, with the sentence for the model."""
    error = f"Invalid {'JSON in ' if is_json else ''}tool call: {reason}"
    return ToolCall(name="", arguments={}, raw=raw, error=error)


def loosely(literal: str) -> str:
    """Return a pattern for a template's text in which runs of whitespace may be any, or none."""
    return r"\s*".join(re.escape(part) for part in re.split(r"\s+", literal))


def common_end(texts: Sequence[str]) -> str:
    """Return the longest text that all of them end with."""
    return common_start([text[::-1] for text in texts])[::-1]


def common_start(texts: Sequence[str]) -> str:
    """Return the longest text that all of them begin with."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))]


def behind(prompt: str, rendered: str) -> str:
    """Return what a conversation's rendering has behind that of its prompt.

    A prompt may end in what this turn does not have (`<think>`): the turn begins with a whole tag.
    """
    common = common_start([prompt, rendered])
    for opening, closing in ("<>", "[]"):
        if common.rfind(opening) > common.rfind(closing):
            common = common[: common.rfind(opening)]
    return rendered[len(common) :]


_TAG = re.compile(r"<[^<>\s][^<>]*>|\[/?[A-Z][A-Z_]*\]")

_MARK = re.compile(r"</?[^\s<>]+>?|\[/?[A-Z][A-Z_]*\]")


def from_first_tag(text: str) -> str:
    """Leave out what stands before the first tag or "<"; a text without one is only stripped."""
    whole = re.search(r"<[^<>\s]|\[", text)
    return (text[whole.start() :] if whole else text).strip()


def to_last_tag(text: str) -> str:
    """Leave out what stands behind the last whole tag."""
    tags = list(_TAG.finditer(text))
    return text[: tags[-1].end()].strip() if tags else ""


def marks_in(*texts: str) -> tuple[str, ...]:
    """Return the tags of literals, also those that go on: `<function=` of `<function=name>`."""
    pieces = (match[0] for text in texts for match in _MARK.finditer(text))
    return tuple(dict.fromkeys(pieces))


def tags_in(text: str) -> tuple[str, ...]:
    """Return the tags of a text, whole ones."""
    return tuple(match[0] for match in _TAG.finditer(text))
