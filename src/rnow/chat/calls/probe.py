"""What a template makes of calls that we know: the material from which their form is found.

A template is given assistant messages with known names and values. It may take the arguments as an
object or as JSON text, and may look at the content first: `Writing` says how this one wants them. A
template that writes no calls, but whose prompt tells the model to put them into <tool_call> tags,
is given them in the content.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnow.chat.calls.form import THINK_TAGS, Thinking, behind, marks_in
from rnow.errors import TemplateError
from rnow.tools.base import ToolSchema

# Letters only and none of them a part of another, so that each is found again wherever it stands.
NAME, OTHER = "rnowfirsttool", "rnowsecondtool"
KEYS = ("rnowkeyone", "rnowkeytwo")
VALUES = ("rnowvalueone", "rnowvaluetwo")
WORDS = dict(zip(KEYS, VALUES, strict=True))
# What a form must carry: each type, and characters that a quoting scheme may trip over.
MIXED = {
    "text": 'Gr\u00f6\u00dfe "q" it\'s {a: [1]}\nand \u6f22\u5b57',
    "page": 2,
    "ratio": 0.5,
    "deep": True,
    "extra": {"a": [1, "x"], "b": {"c": "d"}},
    "tags": ["a", "b c"],
}
_TYPES = {"text": "string", "page": "integer", "ratio": "number", "deep": "boolean"}
_PROPERTIES = {
    **{key: {"type": "string"} for key in KEYS},
    **{key: {"type": type_} for key, type_ in _TYPES.items()},
    "extra": {"type": "object"},
    "tags": {"type": "array", "items": {"type": "string"}},
}
TOOLS = tuple(
    ToolSchema(
        name=name,
        description="A tool.",
        parameters={"type": "object", "properties": _PROPERTIES, "required": []},
    )
    for name in (NAME, OTHER)
)
QUESTION = {"role": "user", "content": "rnowquestion"}
_THOUGHT, _SAID = "rnowthought", "rnowsaid"
# Each template has its own name for what was thought.
THOUGHT = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHT)

Call = tuple[str, Mapping[str, Any]]  # a tool's name and its arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How a template wants an assistant's calls: `message` makes it one."""

    content: str | None = ""
    arguments_as_text: bool = False
    in_content: bool = False  # the template writes no calls: the content is to hold them

    def message(self, calls: Sequence[Call], ids: Sequence[str] = ()) -> dict[str, Any]:
        """Return an assistant's message with these calls; ids are made up where none is given."""
        if self.in_content:
            return {"role": "assistant", "content": "\n".join(map(_hermes, calls))}
        ids = [*ids, *(default_id(number) for number in range(len(ids), len(calls)))]
        return {
            "role": "assistant",
            "content": self.content,
            "tool_calls": [
                {"id": id, "type": "function", "function": self._function(call)}
                for id, call in zip(ids, calls, strict=False)
            ],
        }

    def _function(self, call: Call) -> dict[str, Any]:
        name, arguments = call
        text = json.dumps(arguments, ensure_ascii=False)
        return {"name": name, "arguments": text if self.arguments_as_text else dict(arguments)}


def default_id(number: int) -> str:
    """Return an id for a call that has none; some templates ask for nine letters and digits."""
    return f"call{number:05d}"


_WRITINGS = tuple(
    Writing(content=content, arguments_as_text=as_text)
    for as_text in (False, True)
    for content in ("", None)
)
_DESCRIBED = Writing(in_content=True)

RenderText = Callable[..., str]  # (messages, tools=…, goes_on=True) -> text


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Turns with known calls, as a template writes them, from where its prompt ends.

    words: one call of NAME with WORDS        other: the same of OTHER
    empty: one without arguments              two: NAME and OTHER in one turn, with WORDS
    Each but the first may be None: the template cannot render it.
    """

    words: str
    other: str | None
    empty: str | None
    two: str | None
    mixed: str | None  # one call with MIXED
    thinking: Thinking
    writing: Writing
    tokenizer: Any


def take_samples(render: RenderText, tokenizer: Any) -> Samples | None:
    """Render known calls; None where the template leaves every call out, or fails on each."""
    for writing in _writings(render):
        words = _turn(render, writing, [(NAME, WORDS)])
        if words is None or not all(part in words for part in (NAME, *KEYS, *VALUES)):
            continue
        two = _turn(render, writing, [(NAME, WORDS), (OTHER, WORDS)])
        return Samples(
            words=words,
            other=_turn(render, writing, [(OTHER, WORDS)]),
            empty=_turn(render, writing, [(NAME, {})]),
            two=two if two is not None and OTHER in two else None,
            mixed=_turn(render, writing, [(NAME, MIXED)]),
            thinking=find_thinking(render, writing),
            writing=writing,
            tokenizer=tokenizer,
        )
    return None


def find_thinking(render: RenderText, writing: Writing | None = None) -> Thinking:
    """Find the tags that a template puts around thinking; <think> where it renders none.

    Some write it in a turn with calls alone, some in an answer alone.
    """
    said: list[tuple[dict[str, Any], str]] = [({"role": "assistant", "content": _SAID}, _SAID)]
    if writing is not None and not writing.in_content:
        said.insert(0, (writing.message([(NAME, WORDS)]), NAME))
    for message, follows in said:
        try:
            prompt = render([QUESTION], tools=TOOLS)
            rendered = render([QUESTION, message | THOUGHT], tools=TOOLS, goes_on=False)
        except TemplateError:
            continue
        before, found, after = rendered.partition(_THOUGHT)
        closing = marks_in(after.partition(follows)[0])
        opening = behind(prompt, before).strip()
        # Where the prompt itself opens the thinking, that is its last line.
        opening = opening or before.rstrip().rpartition("\n")[2]
        if found and follows in after and opening and closing:
            return Thinking(open=opening, close=closing[0])
    return THINK_TAGS


def _writings(render: RenderText) -> Iterator[Writing]:
    yield from _WRITINGS
    try:
        shown, bare = render([QUESTION], tools=TOOLS), render([QUESTION])
    except TemplateError:
        return
    if all(text in shown and text not in bare for text in ("<tool_call>", '"arguments"')):
        yield _DESCRIBED


def _turn(render: RenderText, writing: Writing, calls: Sequence[Call]) -> str | None:
    try:
        prompt = render([QUESTION], tools=TOOLS)
        rendered = render([QUESTION, writing.message(calls)], tools=TOOLS, goes_on=False)
    except TemplateError:
        return None
    return behind(prompt, rendered)


def _hermes(call: Call) -> str:
    name, arguments = call
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def schemas_of(tools: Sequence[ToolSchema]) -> dict[str, Mapping[str, Any]]:
    """Return the schema of each tool's arguments, by the tool's name."""
    return {tool.name: tool.parameters for tool in tools}
