"""A trajectory as chat messages: for files that people read, and for reward functions."""

from collections.abc import Mapping
from typing import Any

from rnow.chat.calls.form import THINK_TAGS, Thinking
from rnow.chat.template import ChatTemplate
from rnow.records import Prompt, ToolCallRecord, Trajectory, Turn

Message = dict[str, Any]


def conversation(
    prompt: Prompt, trajectory: Trajectory, chat: ChatTemplate, *, include_thinking: bool
) -> list[Message]:
    """Return the prompt's messages, then what the student and its tools said.

    An assistant's content is its text as it was sampled, calls included; `tool_calls` has the same
    calls in OpenAI's form. A call that could not be read has the name "".
    """
    messages = [dict(message) for message in prompt.messages]
    for number, turn in enumerate(trajectory.turns):
        text = turn_text(trajectory, turn, chat)
        message: Message = {"role": "assistant", "content": text}
        if not include_thinking:
            message["content"] = chat_split(text, chat)[1]
        names = [f"call_{number}_{index}" for index in range(len(turn.tool_calls))]
        if names:
            calls = zip(names, turn.tool_calls, strict=True)
            message["tool_calls"] = [_openai_call(name, call) for name, call in calls]
        messages.append(message)
        for name, call in zip(names, turn.tool_calls, strict=True):
            answer = {"role": "tool", "tool_call_id": name, "name": call.name}
            messages.append({**answer, "content": call.text})
    return messages


def chat_split(text: str, chat: ChatTemplate) -> tuple[str, str]:
    """Return the thinking of a turn, and the rest, by the tags of its model."""
    return split_thinking(text, thinking=chat.thinking, opening=chat.answer_opening)


def turn_text(trajectory: Trajectory, turn: Turn, chat: ChatTemplate) -> str:
    """Return what the student wrote in a turn, without the token that ended it."""
    ids = trajectory.token_ids[turn.start : turn.end].tolist()
    return chat.decode(ids[:-1] if ids[-1] in chat.stop_token_ids else ids)


def split_thinking(
    text: str, *, thinking: Thinking = THINK_TAGS, opening: str = ""
) -> tuple[str, str]:
    """Return a turn's thinking and the rest, without the tags around the thinking.

    Where the template opened the thinking, or a generation was cut in it, one tag is missing.
    `opening` is what a template has before an answer, as gpt-oss's `<|channel|>final<|message|>`.

    >>> split_thinking("<think>Which page?</think>The first.")
    ('Which page?', 'The first.')
    """
    before, end, rest = text.rpartition(thinking.close)
    if opening and opening in rest:
        rest = rest.rpartition(opening)[2].strip()
    if end:
        return before.replace(thinking.open, "").replace(thinking.close, "").strip(), rest.strip()
    if text.lstrip().startswith(thinking.open):
        return text.lstrip().removeprefix(thinking.open).strip(), ""
    return "", rest


def _openai_call(id: str, call: ToolCallRecord) -> Mapping[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": id, "type": "function", "function": function}
