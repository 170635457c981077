"""JSON inside calls: where it stands in a text, and the call that an object means."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rnow.chat.calls.form import malformed
from rnow.tools.base import ToolCall

_DECODER = json.JSONDecoder()
_ARGUMENT_KEYS = ("arguments", "parameters")
_JSON_TYPES = {
    list: "an array",
    dict: "an object",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def decode(text: str, at: int = 0) -> tuple[Any, int]:
    """Return the JSON value that begins at `at`, and where it ends; raise ValueError."""
    start = at + len(text[at:]) - len(text[at:].lstrip())
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError as error:  # a model that repeats "[" reaches any depth
        raise ValueError(str(error)) from error


def values_in(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield each outermost JSON object or array of a text as (value, start, end)."""
    at = 0
    while at < len(text):
        if text[at] in "{[":
            try:
                value, end = decode(text, at)
            except ValueError:
                pass
            else:
                yield value, at, end
                at = end
                continue
        at += 1


def call_of(value: Any, raw: str, *, name_key: str, arguments_key: str) -> ToolCall:
    """Return the call that a decoded object means, malformed if it means none."""
    try:
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, got {_JSON_TYPES[type(value)]}")
        name = value.get(name_key)
        if not isinstance(name, str) or not name:
            raise ValueError(f'"{name_key}" must be the name of a tool')
        keys = (arguments_key, *_ARGUMENT_KEYS)
        key = next((key for key in keys if key in value), arguments_key)
        arguments = arguments_of(value.get(key), key)
    except (ValueError, RecursionError) as error:
        return malformed(raw, error)
    ids = (value.get(key) for key in ("id", "tool_call_id"))
    id = next((id for id in ids if isinstance(id, str)), None)
    return ToolCall(name=name, arguments=arguments, raw=raw, id=id)


def arguments_of(value: Any, key: str = "arguments") -> Mapping[str, Any]:
    """Return arguments as an object; null and nothing are none at all. Raise ValueError."""
    if isinstance(value, str):  # OpenAI's form: JSON within JSON
        value = json.loads(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f'"{key}" must be an object, got {_JSON_TYPES[type(value)]}')
    return value
