"""Check a call's arguments against the tool's schema, and mend what is plainly meant.

A model writes {"page": "2"} for an integer; refusing that teaches nothing. Mended are: a number in
a string, a truth word in a string, anything where a string is wanted, JSON in a string where a list
or an object is wanted; and all of these within a list. What cannot be mended is an ArgumentError,
whose text is for the model.
"""

import json
import math
from collections.abc import Mapping
from types import NoneType
from typing import Any

_NOT_MENDED = object()
_PYTHON_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "array": list,
    "object": dict,
}
_TRUTH_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class ArgumentError(ValueError):
    """The model's mistake; the message is one sentence for the model."""


def check_arguments(
    tool_name: str, schema: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments, mended; raise ArgumentError for the first that is wrong."""
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in arguments:
            raise ArgumentError(f"Tool '{tool_name}': missing required argument '{name}'.")
    if schema.get("additionalProperties") is False and "patternProperties" not in schema:
        for name in arguments:
            if name not in properties:
                raise ArgumentError(f"Tool '{tool_name}': unexpected argument '{name}'.")
    return {
        name: _checked(value, properties.get(name), f"Tool '{tool_name}': argument '{name}'")
        for name, value in arguments.items()
    }


def _checked(given: Any, schema: Any, subject: str) -> Any:
    if not isinstance(schema, Mapping):
        return given  # the schema of an MCP server may be true: anything goes
    value = given
    types = _types(schema)
    if "enum" in schema and not (value is None and "null" in types):
        return _enum_member(value, schema["enum"], subject)
    if types and not any(_is_a(value, type_) for type_ in types):
        mended = (_mend(value, type_) for type_ in types)
        value = next((found for found in mended if found is not _NOT_MENDED), _NOT_MENDED)
        if value is _NOT_MENDED:
            raise ArgumentError(f"{subject} expected type {types}, got {type(given).__name__}.")
    if isinstance(value, list) and "items" in schema:
        items = schema["items"]
        return [_checked(item, items, f"{subject}[{i}]") for i, item in enumerate(value)]
    return value


def _types(schema: Any) -> list[str]:
    """Return the types that a value may have; none where the schema says it in another way."""
    if not isinstance(schema, Mapping):
        return []
    if options := schema.get("anyOf") or schema.get("oneOf"):
        found = [_types(option) for option in options]
        return [type_ for types in found for type_ in types] if all(found) else []
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def _enum_member(value: Any, members: list[Any], subject: str) -> Any:
    for member in members:
        # Not plain equality: True == 1 in Python. And Literal[1, 2] is a string to the schema, so
        # that a model may well write "1".
        if (type(member), member) == (type(value), value) or str(member) == value:
            return member
    raise ArgumentError(f"{subject} must be one of {members}, got {value!r:.100}.")


def _is_a(value: Any, type_: str) -> bool:
    if isinstance(value, bool):  # an integer to Python
        return type_ == "boolean"
    return isinstance(value, _PYTHON_TYPES.get(type_, NoneType))


def _mend(value: Any, type_: str) -> Any:
    if type_ == "string":
        return str(value)
    if not isinstance(value, str):
        return _NOT_MENDED
    try:
        match type_:
            case "integer":
                return int(value)
            case "number":
                number = float(value)
                return number if math.isfinite(number) else _NOT_MENDED
            case "boolean":
                return _TRUTH_WORDS.get(value.lower(), _NOT_MENDED)
            case "array" | "object":
                parsed = json.loads(value)
                return parsed if _is_a(parsed, type_) else _NOT_MENDED
    except (ValueError, RecursionError):
        pass
    return _NOT_MENDED
