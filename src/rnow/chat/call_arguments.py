"""The arguments of tool calls in messages, in the form that a template takes."""

import json
from collections.abc import Mapping
from typing import Any

from rnow.records import Message


def with_arguments(message: Message, *, as_text: bool) -> dict[str, Any]:
    """Turn the arguments of tool calls into what the template takes: objects, or JSON text.

    OpenAI's form has JSON text there, which most templates would quote a second time.
    """
    copy = dict(message)
    if copy.get("tool_calls"):
        calls = [_with_arguments_of(call, as_text=as_text) for call in copy["tool_calls"]]
        copy["tool_calls"] = calls
    return copy


def _with_arguments_of(call: Mapping[str, Any], *, as_text: bool) -> Mapping[str, Any]:
    function = call.get("function")
    if function is None:
        return call
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}
