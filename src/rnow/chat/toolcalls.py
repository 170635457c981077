"""Tool calls as Hermes and Qwen3 write them, read from the text of one turn.

    <think>Should I <tool_call>…? Not yet.</think>           thinking: nothing in it is a call
    <tool_call>
    {"name": "browse", "arguments": {"url": "http://clinic.test/"}}
    </tool_call>

What cannot be read is still a call: the model tried, and is told what was wrong with it. Which tool
it names and whether the arguments fit is the business of whoever runs the call.
"""

import json
import re
from typing import Any

from rnow.tools.base import ToolCall

# Read from the left: a tag inside thinking, or a <think> inside a call's JSON, stays what it is.
_THINKING_OR_CALL = re.compile(
    r"<think>.*?(?:</think>|\Z)|<tool_call>(?P<call>.*?)(?P<end></tool_call>|\Z)", re.DOTALL
)
_JSON_TYPES = {
    list: "an array",
    dict: "an object",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def parse_tool_calls(text: str, *, stopped: bool = True) -> tuple[ToolCall, ...]:
    """Return the calls of a turn in their order.

    A call without its closing tag is malformed where the model stopped by itself, and no call at
    all where the generation was cut (`stopped` False): nobody knows what it was going to be.
    """
    return tuple(
        _read_call(match["call"].strip(), closed=bool(match["end"]))
        for match in _THINKING_OR_CALL.finditer(text)
        if match["call"] is not None and (match["end"] or stopped)
    )


def _read_call(raw: str, *, closed: bool) -> ToolCall:
    try:
        if not closed:
            raise ValueError("the closing </tool_call> is missing")
        name, arguments = _name_and_arguments(json.loads(raw))
    # RecursionError: a model that repeats "[" reaches any depth. JSONDecodeError is a ValueError.
    except (ValueError, RecursionError) as error:
        return ToolCall(name="", arguments={}, raw=raw, error=f"Invalid JSON in tool call: {error}")
    return ToolCall(name=name, arguments=arguments, raw=raw)


def _name_and_arguments(call: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(call, dict):
        raise ValueError(f"expected an object, got {_JSON_TYPES[type(call)]}")
    name = call.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError('"name" must be the name of a tool')
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's form: JSON within JSON
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f'"arguments" must be an object, got {_JSON_TYPES[type(arguments)]}')
    return name, arguments
