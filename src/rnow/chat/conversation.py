"""A trajectory as chat messages: for files that people read, and for reward functions."""

import re
from collections.abc import Mapping
from typing import Any

from rnow.chat.template import ChatTemplate
from rnow.records import Prompt, ToolCallRecord, Trajectory, Turn

Message = dict[str, Any]

_THINKING_END = "</think>"


def conversation(
    prompt: Prompt, trajectory: Trajectory, chat: ChatTemplate, *, include_thinking: bool = True
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
            message["content"] = split_thinking(text)[1]
        names = [f"call_{number}_{index}" for index in range(len(turn.tool_calls))]
        if names:
            calls = zip(names, turn.tool_calls, strict=True)
            message["tool_calls"] = [_openai_call(name, call) for name, call in calls]
        messages.append(message)
        for name, call in zip(names, turn.tool_calls, strict=True):
            answer = {"role": "tool", "tool_call_id": name, "name": call.name}
            messages.append({**answer, "content": call.text})
    return messages


def turn_text(trajectory: Trajectory, turn: Turn, chat: ChatTemplate) -> str:
    """Return what the student wrote in a turn, without the token that ended it."""
    ids = trajectory.token_ids[turn.start : turn.end].tolist()
    return chat.decode(ids[:-1] if ids[-1] in chat.stop_token_ids else ids)


def split_thinking(text: str) -> tuple[str, str]:
    """Return a turn's thinking and the rest, without the tags around the thinking.

    Where the template opened the thinking, or a generation was cut in it, one tag is missing.

    >>> split_thinking("<think>Which page?</think>The first.")
    ('Which page?', 'The first.')
    """
    before, end, rest = text.rpartition(_THINKING_END)
    if not end:
        return (
            (text.removeprefix("<think>").strip(), "") if text.startswith("<think>") else ("", text)
        )
    return re.sub(r"</?think>", "", before).strip(), rest.strip()


def _openai_call(id: str, call: ToolCallRecord) -> Mapping[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": id, "type": "function", "function": function}
