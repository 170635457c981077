"""Turns as a model's own template writes them: what its student would sample."""

from collections.abc import Mapping, Sequence
from typing import Any

from rnow.chat.calls.form import behind
from rnow.chat.template import ChatTemplate
from rnow.records import Message
from rnow.tools.base import ToolSchema


def call_turn(
    chat: ChatTemplate,
    messages: Sequence[Message],
    calls: Sequence[tuple[str, Mapping[str, Any]]],
    schemas: Sequence[ToolSchema],
) -> list[int]:
    """Return the ids of a turn that calls tools, with its end."""
    calling = chat.need_calling()
    turn = _written(chat, messages, calling.writing.message(calls), schemas)
    return _with_end(chat, turn, calling.end_id)


def answer_turn(
    chat: ChatTemplate, messages: Sequence[Message], answer: str, schemas: Sequence[ToolSchema]
) -> list[int]:
    """Return the ids of a turn that answers, with its end."""
    message = {"role": "assistant", "content": answer}
    return _with_end(chat, _written(chat, messages, message, schemas), chat.end_of_turn_id)


def _written(
    chat: ChatTemplate,
    messages: Sequence[Message],
    turn: Message,
    schemas: Sequence[ToolSchema],
) -> str:
    prompt = chat.render(messages, tools=schemas)
    text = behind(prompt, chat.render([*messages, turn], tools=schemas, goes_on=False))
    if chat.thinking.is_open_at_end_of(prompt):
        return f"{chat.thinking.close}\n\n{text.lstrip().removeprefix(chat.thinking.close)}"
    return text


def _with_end(chat: ChatTemplate, turn: str, end: int) -> list[int]:
    ids = chat.encode(turn)
    while ids and ids[-1] != end and len(ids) > 1 and end in ids[-3:]:
        ids.pop()
    return ids if ids[-1] == end else [*ids, end]
